"""Rivals that disaggregate in space: prefill and decode on different instances (FuDG).

Each instance has a role. A prompt is fed on the prefill instance with the least to do, which
samples the first token. Its KV then takes the link of that instance, one prompt after the other,
to the decode instance with the fewest tokens, which goes on with it at no cost. The first token
reaches the client when it is sampled. DistServe and MoonCake work so; the KV that a prefill
instance holds until it is sent does not count, which favours them.

With `shifts`, roles follow the load, as in Arrow (arXiv 2505.11916): four times a second, if the
prompts of the least loaded prefill instance take longer than the TTFT target allows, the least
loaded decode instance becomes a prefill instance; if decoding takes longer than the TPOT target, or
no prefill waits, the other way round. Instances finish what they have begun.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.scheduler import Outgoing
from simulator.arrival import Arrival, SequenceTimes
from simulator.macro.instance import STATUS_S, InstanceSpec, SimulatedInstance
from simulator.macro.simulation import MacroRun
from simulator.pipeline import STOP_TOKEN, EventQueue
from simulator.prompts import Prompts
from simulator.simulation import SimulationError
from wire.messages import Finished, Generated, Submit

# Share of the TTFT target that the prompts before a new one may take before roles are shifted.
_SHIFT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Link:
    """The link by which an instance sends KV: bytes per second, and bytes of a token's KV."""

    bytes_per_s: float
    kv_bytes_per_token: float

    def seconds(self, num_tokens: int) -> float:
        """Seconds for the KV of a prompt."""
        return num_tokens * self.kv_bytes_per_token / self.bytes_per_s


def simulate_disaggregated(
    spec: InstanceSpec,
    num_prefill: int,
    num_decode: int,
    link: Link,
    arrivals: Sequence[Arrival],
    *,
    shifts: bool = False,
    hop_s: float = 0.0003,
    is_hopeless: Callable[[Sequence[SequenceTimes], float], bool] = lambda _, __: False,
) -> MacroRun:
    """Serve the arrivals with prefill and decode instances; see `simulate_macro`."""
    simulation = _Disaggregated(spec, num_prefill, num_decode, link, arrivals, hop_s, shifts=shifts)
    return simulation.run(is_hopeless)


@dataclass(frozen=True, slots=True)
class _Transferred:
    """The KV of a prompt has reached its decode instance."""

    number: int


class _Shift:
    """Roles are reconsidered."""


class _Disaggregated:
    def __init__(
        self,
        spec: InstanceSpec,
        num_prefill: int,
        num_decode: int,
        link: Link,
        arrivals: Sequence[Arrival],
        hop_s: float,
        *,
        shifts: bool,
    ) -> None:
        self._arrivals, self._link, self._hop_s, self._shifts = arrivals, link, hop_s, shifts
        self._spec = spec
        self._queue = EventQueue()
        self._prompts = Prompts(arrivals)
        self._remaining = {i: arrival.output_len for i, arrival in enumerate(arrivals)}
        self._num_open = len(arrivals)
        self._instances = [
            SimulatedInstance(str(i), spec, self._queue, self._remaining, self._take_message)
            for i in range(num_prefill + num_decode)
        ]
        self._prefill = self._instances[:num_prefill]
        self._decode = self._instances[num_prefill:]
        self._link_free_at = {instance.name: 0.0 for instance in self._instances}
        self._decoding = {instance.name: 0 for instance in self._instances}  # tokens of KV
        self._decodes_on: dict[int, SimulatedInstance] = {}
        self._made: dict[int, bytes] = {}
        sequences = [SequenceTimes(a.at_s, a.num_prompt_tokens, a.output_len) for a in arrivals]
        self.result = MacroRun(sequences, num_instances=[(0.0, num_prefill + num_decode)])

    def run(self, is_hopeless: Callable[[Sequence[SequenceTimes], float], bool]) -> MacroRun:
        for instance in self._instances:
            instance.start(0.0)
        for number, arrival in enumerate(self._arrivals):
            self._queue.push(arrival.at_s, self, number)
        if self._shifts:
            self._queue.push(STATUS_S, self, _Shift())
        at = 0.0
        while self._num_open and not is_hopeless(self.result.sequences, at):
            at += 1.0
            self._queue.run(at)
        if self._num_open:
            self.result.makespan_s = at
        return self.result

    def take(self, event: "int | _Transferred | _Shift", now: float) -> None:
        """See `Target.take`."""
        if isinstance(event, int):
            self._arrive(event, now)
        elif isinstance(event, _Transferred):
            self._begin_decode(event.number, now)
        elif self._num_open:
            self._shift(now)
            self._queue.push(now + STATUS_S, self, event)

    def _arrive(self, number: int, now: float) -> None:
        arrival = self._arrivals[number]
        self._made[number] = self._prompts.make(number, arrival).tobytes()
        instance = min(self._prefill, key=lambda i: self._pending_s(i, now))
        submit = Submit(number, self._made[number], 1, stop_token_ids=(STOP_TOKEN,))
        self._queue.push(now + self._hop_s, instance, submit)

    def _pending_s(self, instance: SimulatedInstance, now: float) -> float:
        return instance.promiser.promises(now).pending_prefill_s

    def _take_message(self, instance: SimulatedInstance, message: Outgoing, now: float) -> None:
        if isinstance(message, Generated):
            for number in memoryview(message.sequence_ids).cast("q"):
                self.result.sequences[number].take_token(now + self._hop_s)
        elif isinstance(message, Finished):
            if message.reason == "error":
                raise SimulationError(message.message)
            number = message.sequence_id
            if number in self._decodes_on or not self._remaining[number]:
                self._end(number, now)
            else:
                self._transfer(number, instance, now)

    def _transfer(self, number: int, instance: SimulatedInstance, now: float) -> None:
        num_tokens = self._arrivals[number].num_prompt_tokens
        begins_at = max(now, self._link_free_at[instance.name])
        ends_at = begins_at + self._link.seconds(num_tokens)
        self._link_free_at[instance.name] = ends_at
        target = min(self._decode, key=lambda i: self._decoding[i.name])
        self._decoding[target.name] += num_tokens
        self._decodes_on[number] = target
        is_here = target is instance  # its role has changed
        self._queue.push(now if is_here else ends_at + self._hop_s, self, _Transferred(number))

    def _begin_decode(self, number: int, now: float) -> None:
        arrival, instance = self._arrivals[number], self._decodes_on[number]
        instance.pipeline.has_kv(number, arrival.num_prompt_tokens)
        submit = Submit(
            number,
            self._made.pop(number),
            max(arrival.output_len, instance.longest - arrival.num_prompt_tokens),
            stop_token_ids=(STOP_TOKEN,),
            predicted_len=arrival.predicted_len,
            output_token_ids=bytes(4),
        )
        self._queue.push(now, instance, submit)

    def _end(self, number: int, now: float) -> None:
        target = self._decodes_on.pop(number, None)
        if target is not None:
            self._decoding[target.name] -= self._arrivals[number].num_prompt_tokens
        self.result.sequences[number].ended_at = now + self._hop_s
        self.result.makespan_s = now
        self._num_open -= 1

    def _shift(self, now: float) -> None:
        """Change the role of one instance, if the targets ask for it."""
        scheduler = self._spec.config.scheduler
        ttft_slo, tpot_slo = scheduler.ttft_slo or 0.0, scheduler.tpot_slo or 0.0
        prefill_s = min(self._pending_s(i, now) for i in self._prefill)
        turn_s = min(i.promiser.promises(now).turn_s for i in self._decode)
        if prefill_s > _SHIFT_SHARE * ttft_slo and len(self._decode) > 1 and turn_s < tpot_slo:
            chosen = min(self._decode, key=lambda i: self._decoding[i.name])
            self._decode.remove(chosen)
            self._prefill.append(chosen)
        elif (turn_s > tpot_slo or not prefill_s) and len(self._prefill) > 1:
            chosen = min(self._prefill, key=lambda i: self._pending_s(i, now))
            self._prefill.remove(chosen)
            self._decode.append(chosen)

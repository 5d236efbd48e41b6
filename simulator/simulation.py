"""The simulation: the production scheduler in virtual time, with a cost model for the stages.

The scheduler has the same class as in production and gets the same events; its stages are those of
`simulator.pipeline`. There are no random numbers, so the same arrivals give the same run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from configs.config import EngineConfig
from engine.scheduler import Outgoing
from engine.state.counters import Counters
from engine.trace.trace_file import Gauges, Span
from simulator.arrival import Arrival, SequenceTimes
from simulator.pipeline import STOP_TOKEN, EventQueue, Node, SimulatedPipeline
from simulator.prompts import Prompts
from wire.messages import Finished, Generated, Submit


@dataclass(slots=True)
class Run:
    """The result of a simulation.

    The drain of a stage begins when the stage has run its last prefill step; before, it was busy
    for `busy_before_drain_s`. Lists of seconds have one entry per stage.
    """

    sequences: list[SequenceTimes]
    counters: Counters
    makespan_s: float = 0.0
    busy_s: list[float] = field(default_factory=list)
    drain_began_at: list[float] = field(default_factory=list)
    busy_before_drain_s: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    gauges: list[Gauges] = field(default_factory=list)


def simulate(
    config: EngineConfig,
    node: Node,
    arrivals: Sequence[Arrival],
    *,
    record: bool = False,
    max_open: int | None = None,
) -> Run:
    """Serve the arrivals on an initially empty node until all have ended.

    With `max_open`, at most `max_open` requests are open: the next one arrives when another has
    ended, and its `at_s` is ignored. With `record`, spans and gauges are kept for a timeline.
    Raises `ImpossibleSettingsError` if the node does not support the settings, and
    `SimulationError` if a request is refused.
    """
    simulation = _Simulation(config, node, arrivals, record=record)
    return simulation.run(len(arrivals) if max_open is None else max_open)


class SimulationError(Exception):
    """A request was refused or never ended; the message is shown to the user."""


class _Simulation:
    """Submits the arrivals to a simulated pipeline, and notes the times of their tokens."""

    def __init__(
        self, config: EngineConfig, node: Node, arrivals: Sequence[Arrival], *, record: bool
    ) -> None:
        self._longest = min(node.max_model_len, node.num_blocks * config.cache.block_size)
        self._prompts = Prompts(arrivals)
        first = ((i, a) for i, a in enumerate(arrivals) if a.after is None)
        self._arrivals: Iterator[tuple[int, Arrival]] = first
        self._followers: dict[int, list[tuple[int, Arrival]]] = {}
        for i, arrival in enumerate(arrivals):
            if arrival.after is not None:
                self._followers.setdefault(arrival.after, []).append((i, arrival))
        remaining = {i: arrival.output_len for i, arrival in enumerate(arrivals)}
        self._queue = EventQueue()
        self._pipeline = SimulatedPipeline(
            config, node, self._queue, remaining, self._take_message, record=record
        )
        sequences = [SequenceTimes(a.at_s, a.num_prompt_tokens, a.output_len) for a in arrivals]
        self._sequences = sequences

    def run(self, max_open: int) -> Run:
        self._pipeline.start()
        for sequence_id, arrival in islice(self._arrivals, max_open):
            self._submit(arrival.at_s, sequence_id, arrival)
        self._queue.run()
        num_open = sum(times.ended_at < 0 for times in self._sequences)
        if num_open:
            raise SimulationError(f"the scheduler stopped although {num_open} requests are open")
        figures = self._pipeline.figures
        return Run(
            self._sequences,
            self._pipeline.scheduler.counters,
            self._pipeline.now,
            figures.busy_s,
            figures.drain_began_at,
            figures.busy_before_drain_s,
            figures.spans,
            figures.gauges,
        )

    def _submit(self, at: float, sequence_id: int, arrival: Arrival) -> None:
        submit = Submit(
            sequence_id,
            self._prompts.make(sequence_id, arrival).tobytes(),
            max(arrival.output_len, self._longest - arrival.num_prompt_tokens),
            stop_token_ids=(STOP_TOKEN,),
            predicted_len=arrival.predicted_len,
            offline=arrival.offline,
            spread=arrival.spread,
        )
        self._queue.push(at, self._pipeline, submit)

    def _take_message(self, message: Outgoing, now: float) -> None:
        match message:
            case Generated():
                for sequence_id in memoryview(message.sequence_ids).cast("q"):
                    self._sequences[sequence_id].take_token(now)
            case Finished():
                if message.reason == "error":
                    raise SimulationError(message.message)
                self._sequences[message.sequence_id].ended_at = now
                self._arrive_after(message.sequence_id, now)

    def _arrive_after(self, sequence_id: int, now: float) -> None:
        """Submit what follows a request that has ended; otherwise, the next of all."""
        followers = self._followers.get(sequence_id)
        for next_id, arrival in followers or islice(self._arrivals, 1):
            at = now + arrival.at_s if followers else now
            self._sequences[next_id].arrived_at = at
            self._submit(at, next_id, arrival)

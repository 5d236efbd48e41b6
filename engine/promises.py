"""Promises: what a router must know of the scheduler to send it requests (EcoServe's checks).

See `wire.instance_status` for the figures, and docs/papers.md, section 3.
"""

from itertools import takewhile
from math import inf

from engine.costs.cost_model import CostModel, StepSize
from engine.scheduler import Pipeline, Scheduler
from engine.state.sequence import Sequence
from wire.messages import Event, Submit
from wire.promises import SLACK_QUANTILES, PrefillCosts, Promises

# Between two announcements, at least. A step of a large model takes longer, and collecting the
# figures of a thousand sequences takes 0.5 ms.
SHORTEST_PAUSE_S = 0.02
# Seconds of prompts that have arrived, as a part of the TTFT target, which change the promises a
# lot.
_MUCH = 0.05

# Prompt lengths for which a status has the seconds, in tokens.
_LENGTHS = (1, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def prefill_s(cost: CostModel, num_tokens: int, limit: int) -> float:
    """Seconds of the slowest stage for a prompt that is fed alone, `limit` tokens per step."""
    full, rest = divmod(num_tokens, limit)
    seconds = full * cost.linear_s(limit) + (cost.linear_s(rest) if rest else 0.0)
    return seconds + cost.pair_s * num_tokens * (num_tokens + 1) / 2


# Steps of so few rows cost nearly the same: they do not tell what many more would add.
_FEW_ROWS = 16
# Seconds over which the rate of feeding is averaged, and the greatest stretch that is believed.
_RATE_S, _MOST_STRETCH = 2.0, 10.0


class Promiser:
    """Follows a scheduler, and says what it has promised."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._phase = ""
        self.slot_s = 0.0
        """Seconds of the prompts that have arrived since the last prefill slot ended."""
        self._tpot_slo = scheduler.config.scheduler.tpot_slo or 0.0
        self._limit = scheduler.config.scheduler.max_num_batched_tokens
        self._feeding = _FeedRate()
        self._costs = PrefillCosts()
        self._costs_of: CostModel | None = None
        self._costs_seconds = 0.0

    def arrive(self, num_prompt_tokens: int) -> None:
        """An online request has been submitted."""
        pipeline = self._scheduler.pipeline
        if pipeline is not None:
            cost = pipeline.correction.cost
            self.slot_s += prefill_s(cost, num_prompt_tokens, self._limit)

    def follow(self) -> bool:
        """Look at the phase after an event, and return whether it has changed.

        A prefill slot ends when the phase is decode again.
        """
        pipeline = self._scheduler.pipeline
        phase = pipeline.policy.phase if pipeline else ""
        if phase == self._phase:
            return False
        self._phase = phase
        if phase == "decode":
            self.slot_s = 0.0
        return True

    def promises(self, now: float) -> Promises:
        """The figures at `now` (seconds); empty while the stages are not ready."""
        scheduler = self._scheduler
        pipeline, pool = scheduler.pipeline, scheduler.pool
        if pipeline is None:
            return Promises()
        cost, ledger = pipeline.correction.cost, pool.ledger
        online = [s for s in pool.live.values() if not s.submit.offline]
        decoding = [s for s in online if _is_decoding(s)]
        unfed_offline = [s for s in pool.live.values() if s.submit.offline and not _is_decoding(s)]
        timed = [s for s in decoding if s.first_token_at is not None]
        slack = [self._slack_s(s, now) for s in timed]
        offline_blocks = sum(
            len(s.block_table) - s.num_shared for s in pool.live.values() if s.submit.offline
        )
        costs = self._prefill_costs(pipeline)
        to_feed = [s for s in online if not _is_decoding(s)]
        # They are first in the queue, which may have a hundred thousand others.
        waiting_online = list(takewhile(lambda s: not s.submit.offline, pool.waiting))
        to_feed += waiting_online
        num_unfed = sum(max(0, s.num_unplanned) for s in to_feed)
        self._feeding.observe(scheduler.counters.prompt_tokens - num_unfed, num_unfed, now)
        pending_s = sum(_pending_s(costs, s) for s in to_feed)
        has_slots = pipeline.policy.phase != "mixed"
        turn_s, row_s = self._turn_s(cost, len(pool.live), pool.live_tokens)
        gain_s = self._tpot_slo - turn_s  # of each token that is still to come
        projected = [
            s + sequence.predicted_remaining * gain_s
            for s, sequence in zip(slack, timed, strict=True)
        ]
        return Promises(
            phase=pipeline.policy.phase,
            slot_prefill_s=self.slot_s if has_slots else pending_s,
            pending_prefill_s=pending_s,
            prefill_stretch=self._feeding.stretch(costs.token_s),
            num_waiting=len(to_feed),
            num_decoding=len(decoding),
            num_offline=len(pool.live) + len(pool.waiting) - pool.num_online,
            num_offline_waiting=len(pool.waiting) - len(waiting_online) + len(unfed_offline),
            slack_s=quantiles(sorted(slack)),
            mean_slack_s=sum(slack) / len(slack) if slack else 0.0,
            # Those that will miss the target whatever happens are not worth waiting for.
            projected_slack_s=quantiles(sorted(s for s in projected if s >= 0)),
            turn_s=turn_s,
            turn_s_per_row=row_s,
            lone_turn_s=self._turn_s(cost, 0, 0)[0],
            free_kv_tokens=ledger.num_free * ledger.block_size,
            kv_tokens=ledger.num_blocks * ledger.block_size,
            offline_kv_tokens=offline_blocks * ledger.block_size,
            costs=costs,
        )

    def _slack_s(self, sequence: Sequence, now: float) -> float:
        assert sequence.first_token_at is not None
        return sequence.num_generated * self._tpot_slo - (now - sequence.first_token_at)

    def _turn_s(self, cost: CostModel, num_live: int, kv_tokens: int) -> tuple[float, float]:
        """Seconds of a turn of all micro-batches, and how many more another sequence adds."""
        num_stages = self._scheduler.config.pipeline.pipeline_parallel_size
        if not num_live:
            return num_stages * cost.decode_s(1), 0.0
        rows, mean = -(-num_live // num_stages), kv_tokens // num_live
        size = StepSize(rows, rows, rows * mean)
        added = max(rows, _FEW_ROWS)
        more = StepSize(rows + added, rows + added, (rows + added) * mean)
        turn_s = num_stages * cost.step_s(size)
        return turn_s, max(0.0, num_stages * cost.step_s(more) - turn_s) / (added * num_stages)

    def _prefill_costs(self, pipeline: Pipeline) -> PrefillCosts:
        """The costs, made again only when the cost model has been corrected."""
        cost, limit = pipeline.correction.cost, self._limit
        if cost is not self._costs_of or cost.linear_s(limit) != self._costs_seconds:
            self._costs_of, self._costs_seconds = cost, cost.linear_s(limit)
            self._costs = PrefillCosts(
                _LENGTHS,
                tuple(prefill_s(cost, length, limit) for length in _LENGTHS),
                min(cost.linear_s(n) / n for n in (*_LENGTHS, limit) if n <= limit),
                cost.pair_s,
                self._scheduler.config.pipeline.pipeline_parallel_size,
            )
        return self._costs


class Announcements:
    """Decides when promises are sent besides four times a second; all times are in seconds.

    That is after a change of the phase, and when many prompts have arrived. A daemon without
    targets promises nothing that could not wait.
    """

    def __init__(self, scheduler: Scheduler, promiser: Promiser) -> None:
        settings = scheduler.config.scheduler
        has_targets = settings.ttft_slo is not None and settings.tpot_slo is not None
        self._much_s = _MUCH * settings.ttft_slo if has_targets and settings.ttft_slo else inf
        self._promiser = promiser
        self._sent_at, self._sent_slot_s = -inf, 0.0
        self.due_at = inf

    def follow(self, event: Event, now: float) -> None:
        """Take an event after the scheduler has handled it."""
        promiser = self._promiser
        if isinstance(event, Submit) and not event.offline:
            size = len(event.prompt_token_ids) + len(event.output_token_ids)
            promiser.arrive(size // 4)
        has_changed = promiser.follow()
        if self._much_s == inf or self.due_at < inf:
            return
        if has_changed or promiser.slot_s - self._sent_slot_s > self._much_s:
            self.due_at = max(now, self._sent_at + SHORTEST_PAUSE_S)

    def note_sent(self, now: float) -> None:
        """The promises have been sent."""
        self._sent_at, self._sent_slot_s, self.due_at = now, self._promiser.slot_s, inf


def _is_decoding(sequence: Sequence) -> bool:
    """Whether a live sequence has its first token, perhaps from an earlier engine or daemon."""
    if sequence.first_token_at is not None:
        return True
    return bool(sequence.submit.output_token_ids) and sequence.num_unplanned <= 1


class _FeedRate:
    """Measures how fast prompts are fed while some always wait: decoding goes on beside them."""

    def __init__(self) -> None:
        self._token_s = 0.0
        self._last: tuple[float, int] | None = None  # when some waited: time and tokens fed

    def observe(self, num_fed: int, num_waiting: int, now: float) -> None:
        """`num_fed` prompt tokens have been fed in all, and `num_waiting` wait at `now`."""
        if self._last is not None and num_waiting:
            seconds, tokens = now - self._last[0], num_fed - self._last[1]
            if tokens > 0 and seconds > 0:
                weight = min(1.0, seconds / _RATE_S)
                self._token_s += (seconds / tokens - self._token_s) * (
                    weight if self._token_s else 1.0
                )
        self._last = (now, num_fed) if num_waiting else None

    def stretch(self, token_s: float) -> float:
        """By how much feeding takes longer than `token_s` seconds per token, 1 to 10."""
        return min(_MOST_STRETCH, max(1.0, self._token_s / token_s)) if token_s else 1.0


def _pending_s(costs: PrefillCosts, sequence: Sequence) -> float:
    """Seconds to feed the rest of a prompt among others."""
    num_left = max(0, sequence.num_unplanned)
    first = sequence.num_prompt_tokens - num_left
    pairs = (num_left * (num_left + 1)) / 2 + num_left * first
    return num_left * costs.token_s + pairs * costs.pair_s


def quantiles(ascending: list[float]) -> tuple[float, ...]:
    """The `SLACK_QUANTILES` of sorted values, the nearest below; empty if there are none."""
    if not ascending:
        return ()
    last = len(ascending) - 1
    return tuple(ascending[int(share * last)] for share in SLACK_QUANTILES)

"""A test world for the scheduler: a fake pipeline, and checks of the invariants.

The fake stage stores tokens in KV slots like a real one stores keys and values, and derives the
next token from those that it reads through the block table. A block in two tables, a step out of
order or a lost token therefore changes the output, which is known in advance.
"""

import zlib
from array import array
from collections import deque
from typing import Any

from msgspec.structs import replace

from configs.config import EngineConfig
from engine.quarantine import MAX_UNNAMED_FAILURES
from engine.scheduler import Outgoing, Scheduler
from wire.messages import (
    Abort,
    EngineReady,
    Event,
    Finished,
    Generated,
    Logprobs,
    Milestone,
    PrefixHit,
    RopeRule,
    Sampling,
    StageCosts,
    StageLost,
    StageReady,
    Step,
    StepDone,
    Submit,
)

VOCABULARY = 50
NOTHING = Logprobs(b"", b"", b"", b"", b"", b"")
EOS = 0


def next_token(token_ids: list[int]) -> int:
    """The fake model: any function of all tokens so far."""
    return zlib.crc32(array("i", token_ids).tobytes()) % VOCABULARY


def expected_output(submit: Submit) -> list[int]:
    """The tokens that a sequence must generate under any schedule."""
    token_ids = list(memoryview(submit.prompt_token_ids).cast("i"))
    output: list[int] = []
    while len(output) < submit.max_tokens:
        token_id = next_token(token_ids)
        if len(output) < submit.min_tokens and token_id in submit.stop_token_ids:
            token_id = VOCABULARY
        output.append(token_id)
        token_ids.append(token_id)
        if token_id in submit.stop_token_ids and len(output) >= submit.min_tokens:
            break
    return output


def make_submit(
    sequence_id: int, prompt: list[int], max_tokens: int, *, min_tokens: int = 0, stop: bool = True
) -> Submit:
    """A greedy request; with `stop`, EOS ends it."""
    return Submit(
        sequence_id,
        array("i", prompt).tobytes(),
        max_tokens,
        Sampling(temperature=0.0),
        min_tokens,
        (EOS,) if stop else (),
    )


class FakeStage:
    """Runs steps on a dictionary of slots."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[int, int] = {}
        self.sampled: dict[int, list[int]] = {}  # of each step
        self.samplers: dict[
            int, list[Any]
        ] = {}  # setup and number of output tokens, by sampler slot

    def run(self, step: Step) -> StepDone:
        """Write the tokens of the step, read all tokens of every row, sample.

        Tokens that were planned before they were known are those of the step that it follows.
        """
        tokens, blocks = deque(_ints(step.token_ids)), deque(_ints(step.block_tables))
        for setup in step.setups:
            self.samplers[setup.sampler_slot] = [setup, len(_ints(setup.output_token_ids))]
        sampler_slots = _ints(step.sampler_slots)
        sampled: list[int] = []
        starts, counts = _ints(step.start_positions), _ints(step.num_tokens)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        tables = [[blocks.popleft() for _ in range(-(-end // self.block_size))] for end in ends]
        # As on a real stage, all rows write before any of them reads.
        for start, end, table in zip(starts, ends, tables, strict=True):
            for position in range(start, end):
                token_id = tokens.popleft()
                if token_id < 0:
                    token_id = self.sampled[step.follows][-1 - token_id]
                self.slots[self._slot(table, position)] = token_id
        for end, table, samples in zip(ends, tables, step.samples, strict=True):
            history = [self.slots[self._slot(table, position)] for position in range(end)]
            if samples:
                token_id = next_token(history)
                sampler_slot = sampler_slots[len(sampled)] if sampler_slots else -1
                if sampler_slot >= 0:
                    setup, num_out = self.samplers[sampler_slot]
                    assert bytes(setup.prompt_token_ids) == b""
                    if num_out < setup.min_tokens and token_id in setup.stop_token_ids:
                        token_id = VOCABULARY
                    self.samplers[sampler_slot][1] += 1
                sampled.append(token_id)
        assert not tokens
        assert not blocks
        self.sampled[step.step_id] = sampled
        scores = tuple(NOTHING for _ in step.scored)
        return StepDone(step.epoch, step.step_id, array("i", sampled).tobytes(), None, scores)

    def _slot(self, table: list[int], position: int) -> int:
        return table[position // self.block_size] * self.block_size + position % self.block_size


class World:
    """A scheduler, its fake pipeline, and the messages that every client has received."""

    def __init__(
        self,
        config: EngineConfig,
        num_blocks: int,
        costs: StageCosts = StageCosts(),  # noqa: B008 - frozen
        rope: RopeRule | None = None,
    ) -> None:
        self.config = config
        self.rope = rope
        self.costs = costs
        self.num_blocks = num_blocks
        self.scheduler = Scheduler(config)
        self.now = 0.0
        self.events: list[tuple[float, Event, list[Outgoing]]] = []
        self.in_flight: deque[Step] = deque()
        self.submits: dict[int, Submit] = {}
        self.outputs: dict[int, list[int]] = {}
        self.finished: dict[int, Finished] = {}
        self.aborted: set[int] = set()
        self.hits: dict[int, int] = {}  # cached prompt tokens, by sequence
        self.epoch = 0
        self.poison: set[int] = set()  # sequences that make the stages fail
        self.names_step = True  # whether a failing stage reports its step
        self.stage = FakeStage(config.cache.block_size)
        self.start_pipeline()

    def start_pipeline(self) -> None:
        """All stages of a new group become ready."""
        self.epoch += 1
        self.in_flight.clear()
        self.stage = FakeStage(self.config.cache.block_size)
        for stage in range(self.config.pipeline.pipeline_parallel_size):
            ready = StageReady(stage, self.epoch, self.num_blocks, 1 << 20, self.costs)
            self.hand(replace(ready, rope=self.rope))

    def submit(self, submit: Submit) -> None:
        """A client sends a request."""
        self.submits[submit.sequence_id] = submit
        self.outputs[submit.sequence_id] = []
        self.hand(submit)

    def abort(self, sequence_id: int) -> None:
        """The client closes its connection."""
        self.aborted.add(sequence_id)
        self.hand(Abort(sequence_id))

    def prompt_len(self, sequence_id: int) -> int:
        """The length of the prompt that the client sent."""
        return len(self.submits[sequence_id].prompt_token_ids) // 4

    def lose_pipeline(self) -> None:
        """A stage dies, and the group restarts."""
        self.hand(StageLost(self.epoch, "a stage died"))
        self.start_pipeline()

    def return_step(self) -> bool:
        """The oldest step in flight returns, or the stages fail; False if there is none."""
        if not self.in_flight:
            return False
        step = self.in_flight.popleft()
        if self.poison.isdisjoint(memoryview(step.sequence_ids).cast("q")):
            self.hand(self.stage.run(step))
        else:
            self.hand(StageLost(self.epoch, "boom", step.step_id if self.names_step else -1))
            self.start_pipeline()
        return True

    def run_dry(self) -> None:
        """Return steps until none is in flight."""
        while self.return_step():
            pass

    def hand(self, event: Event) -> list[Outgoing]:
        """Pass an event to the scheduler, process its messages, check the invariants."""
        self.now += 0.01
        answer = self.scheduler.handle(event, self.now)
        self.events.append((self.now, event, answer))
        for message in answer:
            self._take(message)
        self.check_invariants()
        return answer

    def _take(self, message: Outgoing) -> None:
        match message:
            case Step():
                self.in_flight.append(message)
            case Generated():
                ids, tokens = memoryview(message.sequence_ids).cast("q"), _ints(message.token_ids)
                for sequence_id, token_id in zip(ids, tokens, strict=True):
                    assert sequence_id not in self.finished
                    assert sequence_id not in self.aborted
                    self.outputs[sequence_id].append(token_id)
            case Finished():
                assert message.sequence_id not in self.finished, "ended twice"
                assert message.sequence_id not in self.aborted, "ended after its abort"
                self.finished[message.sequence_id] = message
            case PrefixHit():
                prompt = self.submits[message.sequence_id].prompt_token_ids
                assert 0 < message.num_tokens < len(prompt) // 4
                assert message.sequence_id not in self.hits
                self.hits[message.sequence_id] = message.num_tokens
            case EngineReady() | StageLost() | Milestone():
                pass

    def check_invariants(self) -> None:
        """Blocks are conserved, and shared only by equal prefixes; nothing open waits for ever."""
        pipeline, pool = self.scheduler.pipeline, self.scheduler.pool
        if pipeline is None:
            assert not pool.live
            return
        contents: dict[int, tuple[str, list[int]]] = {}
        for sequence in pool.open_sequences():
            for i, block in enumerate(sequence.block_table):
                tokens = sequence.token_ids[: (i + 1) * pool.ledger.block_size].tolist()
                prefix = (sequence.submit.cache_salt, tokens)
                assert contents.setdefault(block, prefix) == prefix, "two tables, other tokens"
        assert len(contents) + pool.ledger.num_free == self.num_blocks, "a block is lost"
        assert len(pipeline.in_flight) == len(self.in_flight) == pool.num_in_flight
        assert self.in_flight or not pool.open_sequences(), "nothing in flight, something open"
        waiting = {sequence.sequence_id for sequence in pool.waiting}
        assert not waiting & set(pool.live), "a sequence in two states"
        assert set(pool.ready) <= set(pool.live)
        assert pool.live_tokens == sum(s.num_planned for s in pool.live.values())
        assert pool.waiting_tokens == sum(s.num_unplanned for s in pool.waiting)
        assert pool.waiting_output == sum(s.predicted_remaining for s in pool.waiting)
        assert pool.num_online == sum(not s.submit.offline for s in pool.open_sequences())

    def check_ends(self) -> None:
        """Every request has ended exactly once and with the right tokens."""
        for sequence_id, submit in self.submits.items():
            if sequence_id in self.aborted:
                continue
            end = self.finished[sequence_id]
            if end.reason == "error":
                # A request that is the only one in flight in three failures is taken for poison.
                is_suspect = self.scheduler.counters.restarts >= MAX_UNNAMED_FAILURES
                assert sequence_id in self.poison or is_suspect or "exceed" in end.message
                continue
            output = expected_output(submit)
            assert self.outputs[sequence_id] == output
            last_stops = output[-1] in submit.stop_token_ids and len(output) >= submit.min_tokens
            assert end.reason == ("stop" if last_stops else "length")
        assert self.scheduler.pool.ledger.num_used == 0
        assert not self.scheduler.pool.open_sequences()


def _ints(packed: bytes) -> list[int]:
    return memoryview(packed).cast("i").tolist()

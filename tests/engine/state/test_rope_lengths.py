"""RoPE lengths: the keys that a row reads were rotated as `generate` rotates them."""

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from configs.config import EngineConfig
from tests.engine.world import FakeStage, World, make_submit
from wire.messages import RopeRule, Step, StepDone

LIMIT = 12


class RopeStage(FakeStage):
    """Remembers the RoPE length of each key, and checks those that a sampling row reads."""

    def __init__(self, world: World) -> None:
        super().__init__(world.config.cache.block_size)
        self.world, self.lengths, self.num_checked = world, {}, 0

    def run(self, step: Step) -> StepDone:
        """As of `FakeStage`."""
        tables = memoryview(step.block_tables).cast("i").tolist()
        columns: list[Any] = [
            memoryview(column).cast("i").tolist()
            for column in (step.start_positions, step.num_tokens, step.rope_lens)
        ]
        numbers = memoryview(step.sequence_ids).cast("q")
        for number, start, count, rope_len in zip(numbers, *columns, strict=True):
            end = start + count
            num_blocks = -(-end // self.block_size)
            table, tables = tables[:num_blocks], tables[num_blocks:]
            for position in range(start, end):
                self.lengths[self._slot(table, position)] = max(rope_len, position + 1)
            read = [self.lengths[self._slot(table, position)] for position in range(end)]
            assert read == self._expected(number, end, rope_len), (number, start, end)
            self.num_checked += 1
        return super().run(step)

    def _expected(self, number: int, end: int, rope_len: int) -> list[int]:
        """The lengths after `end` tokens; prompts within the limit are recomputed beyond it."""
        assert self.world.rope is not None
        num_prompt, limit = self.world.prompt_len(number), self.world.rope.recompute_len
        total = num_prompt + len(self.world.outputs[number])
        shared = limit + 1 if num_prompt <= limit < total else num_prompt
        assert rope_len == shared
        return [max(shared, position + 1) for position in range(end)]


def make_world(rule: RopeRule, num_blocks: int = 60, **settings: Any) -> World:
    """A world whose stages check RoPE lengths."""
    world = World(EngineConfig.of(block_size=2, **settings), num_blocks, rope=rule)
    world.stage = RopeStage(world)
    return world


@pytest.mark.parametrize("policy", ["td-pipe", "temporal", "separate", "hybrid"])
@pytest.mark.parametrize("limit", [0, LIMIT])
@settings(deadline=None, max_examples=25)
@given(
    requests=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=8),
    num_blocks=st.integers(20, 60),
    max_tokens=st.integers(1, 16),
)
def test_keys_have_the_lengths_of_generate_under_any_schedule(
    policy: str, limit: int, requests: list[tuple[int, int]], num_blocks: int, max_tokens: int
) -> None:
    world = make_world(
        RopeRule(limit), num_blocks, policy=policy, max_num_batched_tokens=max_tokens
    )
    for number, (length, output) in enumerate(requests):
        world.submit(make_submit(number, [number + 1] * length, output, stop=False))
    world.run_dry()
    world.check_ends()
    assert world.stage.num_checked >= len(requests)  # type: ignore[attr-defined]


def test_a_sequence_is_recomputed_once_when_it_outgrows_the_limit() -> None:
    world = make_world(RopeRule(LIMIT))
    for number, length in enumerate((LIMIT - 5, LIMIT, LIMIT + 1)):
        world.submit(make_submit(number, [1 + number] * length, 8, stop=False))
    world.run_dry()
    world.check_ends()
    assert world.scheduler.counters.preemptions == 2
    assert world.scheduler.counters.recomputed_tokens == 2 * LIMIT


def test_a_sequence_that_ends_at_the_limit_is_not_recomputed() -> None:
    world = make_world(RopeRule(LIMIT))
    world.submit(make_submit(0, [1] * LIMIT, 1, stop=False))
    world.run_dry()
    world.check_ends()
    assert world.scheduler.counters.preemptions == 0


def test_lost_stages_and_a_new_engine_do_not_change_the_lengths() -> None:
    world = make_world(RopeRule(LIMIT))
    for number in range(3):
        world.submit(make_submit(number, [1 + number] * (LIMIT - 4), 12, stop=False))
    for _ in range(12):
        world.return_step()
    world.lose_pipeline()
    world.stage = RopeStage(world)
    world.run_dry()
    world.check_ends()
    again = make_world(RopeRule(LIMIT))
    for number, submit in world.submits.items():
        done = world.outputs[number][: 2 + 3 * number]
        again.submit(replace(submit, output_token_ids=array("i", done).tobytes()))
        again.outputs[number] = list(done)
    again.run_dry()
    assert again.outputs == world.outputs


def test_steps_of_other_models_have_no_rope_lengths() -> None:
    world = World(EngineConfig(), 100)
    world.submit(make_submit(0, [1, 2, 3], 4))
    assert [step.rope_lens for step in world.in_flight] == [b""]

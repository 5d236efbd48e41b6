"""No prompt waits for decodes to end, whatever room they leave in a step."""

from typing import Any

import pytest

from configs.config import EngineConfig
from tests.engine.world import World, make_submit
from wire.messages import StageCosts

# Every size is the end of a stair, so that a step ends wherever the policy wants.
EVERY_EDGE = StageCosts(tuple(range(1, 65)), tuple(0.001 * size for size in range(1, 65)), 1e-8)
NUM_TOKENS = 400  # of the sequences that decode meanwhile
POLICIES: list[dict[str, Any]] = [
    {"policy": "td-pipe"},
    {"policy": "temporal"},
    {"policy": "temporal", "online_steps": 1},
    {"policy": "separate"},
    {"policy": "hybrid", "hybrid": "vllm"},
    {"policy": "hybrid", "hybrid": "throttled", "throttle_min_tokens": 1},
]


@pytest.mark.parametrize("settings", POLICIES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 3, 50])
@pytest.mark.parametrize("room", [0, 1, 2, 40])
def test_a_prompt_is_fed_while_others_decode(
    settings: dict[str, Any], num_stages: int, num_prompt_tokens: int, room: int
) -> None:
    """`room` is the tokens of a step beside the decodes."""
    num_rows = 24
    config = EngineConfig.of(
        pipeline_parallel_size=num_stages, max_num_batched_tokens=num_rows + room, **settings
    )
    world = World(config, 10_000, EVERY_EDGE)
    for i in range(num_rows):
        world.submit(make_submit(i, [1 + i], NUM_TOKENS, stop=False))
    while len(world.outputs.get(num_rows - 1, ())) < 20:
        world.return_step()
    world.submit(make_submit(99, [7] * num_prompt_tokens, 5, stop=False))
    while not world.outputs.get(99):
        world.return_step()
    assert all(len(world.outputs[i]) < NUM_TOKENS * 3 // 4 for i in range(num_rows))

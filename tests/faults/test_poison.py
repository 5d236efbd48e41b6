"""A request that fails its stage each time is found out, and is the only one that pays for it."""

import asyncio

import pytest

from tests.faults.crowd import run_crowd
from tests.faults.levered_llama import DEADLY, POISON
from tests.faults.world import World

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize(
    ("token_id", "num_restarts"),
    [
        pytest.param(POISON[0], 2, id="raises in the first stage", marks=pytest.mark.long),
        pytest.param(POISON[2], 2, id="raises in the last stage"),
        # Nobody tells which step it was: it might be chance, so one more is needed.
        pytest.param(DEADLY, 3, id="kills the first stage", marks=pytest.mark.long),
    ],
)
def test_poison_is_refused_alone(token_id: int, num_restarts: int, world: World) -> None:
    world.revive()
    before = world.daemon.metric("tdpipe_pipeline_restarts_total")
    poison = {**world.asked[0], "prompt": [token_id]}
    crowd = asyncio.run(run_crowd(world.daemon.url, [*world.asked, poison]))
    *others, guilty = crowd.streams
    (end,) = guilty.ends
    assert end.startswith("error: a stage failed each time it worked on this")
    assert guilty.num_done == 1
    assert [stream.ends for stream in others] == [["length"]] * len(others)
    assert [stream.text for stream in others] == world.texts
    assert world.daemon.metric("tdpipe_pipeline_restarts_total") == before + num_restarts
    world.revive()
    assert asyncio.run(run_crowd(world.daemon.url, world.asked)).texts == world.texts

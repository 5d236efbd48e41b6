"""A request that fails its stage each time is detected, and only that request fails."""

import asyncio
import json

import pytest

from demo.tasks import held_out
from tests.end_to_end.test_batches import begin, wait_ended
from tests.faults.clients import run_clients
from tests.faults.levered_llama import DEADLY, POISON
from tests.faults.world import World
from tests.server.batches.world import by_custom_id

pytestmark = pytest.mark.timeout(400)

# A busy machine may hold a stage up for longer than `heartbeat_timeout`, whatever the request.
HELD_UP = ("waited for a neighbour", "was silent")


def losses(world: World) -> list[str]:
    """The log lines of the stages' losses, but for those of stages that were only held up."""
    lines = [line for line in world.daemon.log().splitlines() if "restarting the stages" in line]
    return [line for line in lines if not any(words in line for words in HELD_UP)]


@pytest.mark.parametrize(
    ("token_id", "num_restarts"),
    [
        pytest.param(POISON[0], 2, id="raises in the first stage", marks=pytest.mark.long),
        pytest.param(POISON[2], 2, id="raises in the last stage"),
        # The failed step is not known, and a death might be chance: one more restart is needed.
        pytest.param(DEADLY, 3, id="kills the first stage", marks=pytest.mark.long),
    ],
)
def test_only_the_poisonous_request_is_refused(
    token_id: int, num_restarts: int, world: World
) -> None:
    world.revive()
    before = len(losses(world))
    poison = {**world.asked[0], "prompt": [token_id]}
    clients = asyncio.run(run_clients(world.daemon.url, [*world.asked, poison]))
    *others, poison = clients.streams
    (end,) = poison.ends
    assert end.startswith("error: a stage failed each time it processed this request")
    assert poison.num_done == 1
    assert [stream.ends for stream in others] == [["length"]] * len(others)
    assert [stream.text for stream in others] == world.texts
    assert len(losses(world)) == before + num_restarts
    world.revive()
    assert asyncio.run(run_clients(world.daemon.url, world.asked)).texts == world.texts


@pytest.mark.long
def test_a_poisonous_line_of_a_batch_is_asked_once_and_all_others_are_answered(
    world: World,
) -> None:
    world.revive()
    before = len(losses(world))
    prompts = [task.prompt for task in held_out(20, seed=37)]
    lines = [
        {
            "custom_id": f"r{i}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "tdpipe-demo", "prompt": prompt, "max_tokens": 20},
        }
        for i, prompt in enumerate([*prompts, [POISON[1]]])
    ]
    batch_id = begin(world.daemon, "".join(json.dumps(line) + "\n" for line in lines))
    batch = wait_ended(world.daemon, batch_id)
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    with world.daemon.client() as client:
        answered = by_custom_id(client.files.content(batch.output_file_id).text)
        failed = by_custom_id(client.files.content(batch.error_file_id).text)
    assert set(answered) == {f"r{i}" for i in range(len(prompts))}
    assert set(failed) == {f"r{len(prompts)}"}
    assert "failed each time" in json.dumps(failed)
    assert len(losses(world)) == before + 2

"""Batches survive their daemon: kill -9 at any moment loses no answer and repeats none."""

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import openai
import psutil
import pytest

from demo.tasks import held_out
from tests.end_to_end.daemon import Daemon, all_gone
from tests.server.batches.world import ENDED, by_custom_id

MODEL = "tdpipe-demo"
BATCH_TIMEOUT_S = 600.0


def requests(count: int) -> str:
    """An input file of greedy requests."""
    bodies = (
        {"model": MODEL, "prompt": task.prompt, "max_tokens": 300, "temperature": 0}
        for task in held_out(count, seed=17)
    )
    return "".join(
        json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body})
        + "\n"
        for i, body in enumerate(bodies)
    )


def begin(daemon: Daemon, content: str) -> str:
    """A batch's id."""
    with daemon.client() as client:
        file = client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
        return client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        ).id


def wait_ended(daemon: Daemon, batch_id: str) -> openai.types.Batch:
    """The batch, once it has ended."""
    with daemon.client() as client:
        daemon.wait_for(lambda: client.batches.retrieve(batch_id).status in ENDED, BATCH_TIMEOUT_S)
        return client.batches.retrieve(batch_id)


def answers(daemon: Daemon, batch: openai.types.Batch) -> dict[str, str]:
    """Texts by custom_id; each must be there once, and none may have failed."""
    assert batch.status == "completed"
    assert batch.error_file_id is None
    assert batch.output_file_id is not None
    with daemon.client() as client:
        output = by_custom_id(client.files.content(batch.output_file_id).text)
    return {
        custom_id: answer["response"]["body"]["choices"][0]["text"]
        for custom_id, answer in output.items()
    }


def num_written(folder: Path) -> int:
    """Answers that are on the disk now."""
    (store,) = (folder / "data").glob("batches/*")
    return sum(
        path.read_bytes().count(b'{"id":"batch_req_') for path in (store / "files").iterdir()
    )


def has_written(folder: Path, count: int) -> bool:
    """Whether this many answers are on the disk."""
    return num_written(folder) >= count


def kill(daemon: Daemon) -> None:
    """Kill every process of it, as a power failure would."""
    everything = psutil.Process(daemon.process.pid).children(recursive=True)
    daemon.process.kill()
    for process in everything:
        if process.is_running():
            process.kill()
    daemon.wait_end()
    assert all_gone(everything, 10)


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that its test kills and starts again."""
    with Daemon(tmp_path) as daemon:
        yield daemon


@pytest.mark.parametrize(
    ("num_requests", "num_kills"),
    [(60, 1), pytest.param(2000, 5, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
)
def test_a_killed_daemon_resumes_and_answers_each_request_once_as_if_undisturbed(
    num_requests: int, num_kills: int, killed: Daemon, demo: Daemon
) -> None:
    content = requests(num_requests)
    undisturbed = answers(demo, wait_ended(demo, begin(demo, content)))
    batch_id = begin(killed, content)
    moments = sorted(random.Random(7).sample(range(num_requests), num_kills))
    left = []
    for moment in moments:
        killed.wait_for(partial(has_written, killed.folder, moment), BATCH_TIMEOUT_S)
        kill(killed)
        left.append(num_requests - num_written(killed.folder))
        killed.start()
        killed.wait_ready()
    # The pipeline's death is not charged to the requests either.
    killed.descendants()["stage"][-1].kill()
    assert answers(killed, wait_ended(killed, batch_id)) == undisturbed
    assert left[0] > 0, "the first kill came too late to mean anything"
    assert undisturbed.keys() == {f"r{i}" for i in range(num_requests)}

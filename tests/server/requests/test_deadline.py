"""The deadline: queued, running or not even read, a request ends when its time is over."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from server.http.errors import ApiError
from server.requests.deadline import Deadline, sooner_of
from server.text.tokenizer import MAX_INLINE_CHARACTERS, Tokenizer
from tests.server.batches.world import begin, line, official, wait_for
from tests.server.templates import CHATML, chatty
from tests.server.world import (
    MODEL,
    PATIENCE_S,
    TOKENIZER,
    byte_level_tokenizer,
    events,
    generated,
    serving,
)
from wire.messages import Abort, Finished, Submit

HI = TOKENIZER.encode("hi")
SOON_S, LATE_S = 0.05, 1000.0
ERROR = {
    "message": "The answer was not complete within the request's timeout of 0.05 seconds.",
    "type": "requests",
    "param": None,
    "code": "deadline_exceeded",
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": "hi", "n": 3}),
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 3}),
    ],
)
@pytest.mark.parametrize(
    ("own", "settings"),
    [
        ({"timeout": SOON_S}, {}),
        ({"timeout": SOON_S}, {"request_timeout": LATE_S}),
        ({"timeout": LATE_S}, {"request_timeout": SOON_S}),
        ({}, {"request_timeout": SOON_S}),
    ],
)
def test_a_request_that_waits_too_long_is_408_and_leaves_the_queue(
    tmp_path: Path, path: str, body: dict[str, Any], own: dict[str, Any], settings: dict[str, Any]
) -> None:
    with serving(tmp_path, tokenizer=chatty(CHATML), **settings) as daemon:
        fields = {"model": MODEL, "max_tokens": 5} | body | own
        response = daemon.http.post(f"{daemon.url}/v1/{path}", json=fields)
        assert response.status_code == 408
        assert response.headers["x-should-retry"] == "false"
        assert response.json()["error"] == ERROR
        assert len(daemon.engine.wait_for(Abort, 3)) == 3
        assert daemon.client.num_queued == 0
        assert '{model_name="little",outcome="timeout"} 1.0' in daemon.get("/metrics").text


def test_a_stream_keeps_its_text_and_ends_with_the_error(tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": "hi", "stream": True, "timeout": 2}
    with (
        serving(tmp_path) as daemon,
        daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=body) as response,
    ):
        (submit,) = daemon.engine.wait_for(Submit)
        daemon.engine.send(generated(submit.sequence_id, *HI))
        response.read()
        text, error = events(response)
        assert text["choices"][0]["text"] == "hi"
        assert error["error"]["code"] == "deadline_exceeded"
        assert daemon.engine.wait_for(Abort) == [Abort(submit.sequence_id)]


class Slow(Tokenizer):
    """Reads a prompt on request."""

    def __init__(self) -> None:
        super().__init__(byte_level_tokenizer())
        self.reported = threading.Event()

    def encode(self, text: str) -> list[int]:
        assert self.reported.wait(PATIENCE_S)
        return super().encode(text)


def test_the_time_in_which_a_prompt_is_read_counts(tmp_path: Path) -> None:
    tokenizer = Slow()
    with serving(tmp_path, tokenizer=tokenizer) as daemon:
        response = daemon.complete(prompt="x" * (MAX_INLINE_CHARACTERS + 1), timeout=SOON_S)
        assert response.status_code == 408
        tokenizer.reported.set()
        assert not daemon.engine.wait_for(Submit, 0)


def test_a_batch_keeps_its_lines_own_deadlines_and_not_the_one_for_online_requests(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, request_timeout=SOON_S) as daemon, official(daemon) as client:
        batch = begin(client, f"{line('late', timeout=SOON_S)}\n{line('patient')}\n")
        one, other = daemon.engine.wait_for(Submit, 2)
        (abort,) = daemon.engine.wait_for(Abort)
        assert daemon.complete().status_code == 408
        (patient,) = {one.sequence_id, other.sequence_id} - {abort.sequence_id}
        daemon.engine.send(generated(patient, *HI), Finished(patient, "length"))
        batch = wait_for(client, batch.id, "completed")
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
        assert batch.error_file_id is not None
        reported = client.files.content(batch.error_file_id).text
        assert '"status_code":408' in reported
        assert "deadline_exceeded" in reported
        # It is not asked once more.
        assert len(daemon.engine.wait_for(Submit, 3)) == 3


@pytest.mark.parametrize("timeout", [0, -1, "1", True])
def test_a_timeout_is_a_number_of_seconds(tmp_path: Path, timeout: object) -> None:
    with serving(tmp_path) as daemon:
        response = daemon.complete(timeout=timeout)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "timeout"


def test_a_timeout_of_the_block_s_own_stays_what_it_is() -> None:
    async def run() -> None:
        async with Deadline(LATE_S).kept():
            raise TimeoutError("another")

    with pytest.raises(TimeoutError, match="another"):
        asyncio.run(run())


@pytest.mark.parametrize("timeouts", [(None,), (None, None), (LATE_S,), (LATE_S, None)])
def test_without_a_limit_nothing_is_ended(timeouts: tuple[float | None, ...]) -> None:
    async def run() -> str:
        async with sooner_of(*timeouts).kept():
            await asyncio.sleep(0)
        return "done"

    assert asyncio.run(run()) == "done"


def test_the_shortest_time_counts() -> None:
    async def run() -> None:
        async with sooner_of(LATE_S, None, SOON_S).kept():
            await asyncio.Event().wait()

    with pytest.raises(ApiError, match=r"timeout of 0\.05 seconds"):
        asyncio.run(run())

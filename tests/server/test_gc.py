"""Requests leave no reference cycles: the garbage collector would block the event loop."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.requests.generation import Generation
from server.requests.open_sequence import OpenSequence
from tests.server.world import MODEL, Daemon, saying, serving


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One that answers, without a garbage collector."""
    gc.collect()
    before = num_in_memory()
    with serving(tmp_path, saying("hello"), max_num_queued_reqs=2) as daemon:
        daemon.http.get(f"{daemon.url}/health", headers={"connection": "close"})
        # The client may have the answer before the server has dropped the request.
        daemon.wait_until(lambda: num_in_memory() <= before)
        gc.collect()
        gc.disable()
        yield daemon
        gc.enable()


def num_in_memory() -> int:
    """What is left of requests, those of other servers included."""
    kinds = (RequestResponseCycle, Generation, OpenSequence)
    return sum(issubclass(type(each), kinds) for each in gc.get_objects())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 200),
        ({"stream": True, "n": 2}, 200),
        ({"stream": True, "stop": ["ll"]}, 200),
        ({"n": 3}, 429),
        ({"max_tokens": -1}, 400),
        ({"model": "none"}, 404),
    ],
)
def test_what_a_request_was_goes_with_its_end(
    daemon: Daemon, body: dict[str, Any], status: int
) -> None:
    before = num_in_memory()
    response = daemon.http.post(
        f"{daemon.url}/v1/completions",
        json={"model": MODEL, "prompt": "hi"} | body,
        headers={"connection": "close"},  # else the connection keeps its last request
    )
    assert response.status_code == status
    daemon.wait_until(lambda: num_in_memory() == before)

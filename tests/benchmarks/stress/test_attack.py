"""An attack: a real server survives it, and a server that did not would be detected."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.exchange import Address
from benchmarks.stress.attack import ABANDONED, CUT, HUNG, Attack, outcome_of
from benchmarks.stress.malformed import MODEL, Malformed, malformed
from tests.server.templates import CHATML, chatty
from tests.server.world import saying, serving

# Some of each kind. `make abuse` sends 10,000 to a whole daemon.
NUM_REQUESTS, RATE = 520, 400.0


def test_no_malformed_request_is_our_fault_or_left_without_an_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"served_model_name": MODEL, "tokenizer": chatty(CHATML)}
    with serving(tmp_path, saying("hello"), **settings) as daemon:  # type: ignore[arg-type]
        attack = Attack(Address.of(daemon.url))
        asyncio.run(attack.run(malformed(NUM_REQUESTS), RATE))
        assert not attack.failures()
        outcomes = sum(attack.outcomes.values(), start=Counter[int | str]())
        assert outcomes.total() == NUM_REQUESTS
        assert outcomes[400] > NUM_REQUESTS // 4
        assert daemon.complete(model=MODEL).json()["choices"][0]["text"] == "hello"
        daemon.wait_until(lambda: not daemon.drain.num_open)
        assert daemon.client.num_queued == 0
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A server that handles its one connection with `answer`, and closes it when the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = []

        def serve() -> None:
            connections.append(listener.accept()[0])
            answer(connections[0])

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1])
        thread.join()
        connections[0].close()


def asked(answer: Callable[[socket.socket], None], *, is_whole: bool = True) -> int | str:
    """The outcome of one request to such a server."""
    with answering(answer) as address:
        return asyncio.run(outcome_of(address, Malformed("some", b"hello", is_whole)))


def test_the_reactions_of_a_server_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.stress.attack.PATIENCE_S", 0.1)
    monkeypatch.setattr("benchmarks.stress.attack.LINGER_S", 0.1)
    failure = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"
    assert asked(lambda client: client.sendall(failure)) == 500
    assert asked(lambda client: client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + failure)) == 500
    assert asked(lambda client: client.shutdown(socket.SHUT_RDWR)) == CUT
    assert asked(lambda _: None) == HUNG
    assert asked(lambda _: None, is_whole=False) == ABANDONED


def test_only_5xx_and_silence_are_failures() -> None:
    attack = Attack(Address("127.0.0.1", 1))
    for outcome in (200, 400, 499, 500, 503, HUNG, ABANDONED, CUT):
        attack.outcomes.setdefault("some", Counter())[outcome] += 1
    assert attack.failures() == {500: 1, 503: 1, HUNG: 1}

"""The engine and a server that it cannot reach: undelivered messages change its number."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import loader
from configs.config import Config
from daemon.processes import child_process
from wire.messages import Hello, Stats, ToServer
from wire.sockets import Spoke

PATIENCE_S = 30.0


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    """The settings of an engine that runs without stages."""
    config = Config.of(model="none", runtime_dir=tmp_path)
    loader.save(config, tmp_path)
    engine = child_process.start("engine", str(tmp_path), "0")
    yield config
    engine.kill()
    engine.wait()


def next_stats(server: Spoke[ToServer]) -> Stats:
    """The next `Stats`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        server.send(Hello())
        server.wait(0.5)
        for message in server.drain():
            if isinstance(message, Stats):
                return message
    raise AssertionError("no Stats arrived")


def test_an_engine_with_undelivered_messages_gets_a_new_number(
    config: Config,
) -> None:
    with Spoke[ToServer](config.runtime.server_address, "server", ToServer) as server:
        first = next_stats(server)
        assert next_stats(server).engine == first.engine
    time.sleep(1.0)  # the engine tries to send Stats four times
    with Spoke[ToServer](config.runtime.server_address, "server", ToServer) as server:
        second = next_stats(server)
        assert second.engine != first.engine
        assert next_stats(server).engine == second.engine

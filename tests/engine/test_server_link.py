"""The engine and a server that it cannot reach for a while: what was not delivered is told anew."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import loader
from configs.schema import Config
from daemon import child_process
from wire.messages import Hello, Stats, ToServer
from wire.sockets import Spoke

PATIENCE_S = 30.0


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    """Of an engine that runs, without stages."""
    config = Config(model="none", runtime_dir=tmp_path)
    loader.save(config, tmp_path)
    engine = child_process.start("engine", str(tmp_path), "0")
    yield config
    engine.kill()
    engine.wait()


def next_stats(server: Spoke[ToServer]) -> Stats:
    """The next that come."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        server.send(Hello())
        server.wait(0.5)
        for message in server.drain():
            if isinstance(message, Stats):
                return message
    raise AssertionError("no Stats came")


def test_an_engine_that_could_not_tell_its_server_something_is_another_to_it(
    config: Config,
) -> None:
    with Spoke[ToServer](config.server_address, "server", ToServer) as server:
        first = next_stats(server)
        assert next_stats(server).engine == first.engine
    time.sleep(1.0)  # it has something to say four times; nobody could tell us that it has
    with Spoke[ToServer](config.server_address, "server", ToServer) as server:
        second = next_stats(server)
        assert second.engine != first.engine
        assert next_stats(server).engine == second.engine

"""The daemon in a network of its own, which goes away and comes back: requests wait for it.

Client and daemon are in two network namespaces and meet at a Unix socket. What the stages send each
other, and what torchrun does, goes over the daemon's own loopback interface.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.daemon import Daemon
from tests.faults.crowd import Crowd, bodies, run_crowd

URL = "http://daemon"
NOTICE_S = 6.0  # on a busy machine; the matrix measures it
AWAY_S = 3.0


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with nothing but a loopback interface."""
    if os.geteuid():
        pytest.skip("needs root")
    name = f"tdpipe-{os.getpid()}"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    set_link(name, "up")
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def set_link(name: str, state: str) -> None:
    """The namespace's only interface, up or down."""
    subprocess.run(["ip", "-n", name, "link", "set", "lo", state], check=True)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_streams_outlive_the_loss_of_the_network(namespace: str, tmp_path: Path) -> None:
    door = tmp_path / "door"
    client = httpx.Client(transport=httpx.HTTPTransport(uds=str(door)), base_url=URL)

    def is_ok() -> bool:
        try:
            return door.exists() and client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    async def stream(daemon: Daemon) -> Crowd:
        async with Crowd(URL, bodies(), door) as crowd:
            await crowd.reach("decode")
            set_link(namespace, "down")
            began_at = time.monotonic()
            await asyncio.to_thread(daemon.wait_for, lambda: not is_ok(), NOTICE_S)
            await asyncio.sleep(AWAY_S - (time.monotonic() - began_at))
            assert not any(stream.ends for stream in crowd.streams)
            set_link(namespace, "up")
        return crowd

    daemon = Daemon(
        tmp_path,
        *("--uds", str(door), "-pp", "3", "--dtype", "float32"),
        under=("ip", "netns", "exec", namespace),
    )
    daemon.start()
    with client:
        daemon.wait_for(is_ok, 120)
        undisturbed = asyncio.run(run_crowd(URL, bodies(), door))
        crowd = asyncio.run(stream(daemon))
        assert [stream.ends for stream in crowd.streams] == [["length"]] * len(crowd.streams)
        assert crowd.texts == undisturbed.texts
        daemon.wait_for(is_ok)
    daemon.process.terminate()
    assert daemon.wait_end() == 0

"""Stages on two hosts, with a link that is cut and mended: requests wait for it.

The hosts are two network namespaces with a pair of virtual network cards between them. The first
stage is on one and the others are on the other, so that all activations from stage to stage pass
the link; the rest of the daemon is where the test is.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.daemon import Daemon
from tests.faults.blow import stages_of
from tests.faults.clients import Clients, bodies, run_clients
from tests.faults.witness import Witness

HOSTS = Path(__file__).parent / "hosts"  # moves the stages there
CARD = "link0"
NOTICE_S = 2.0
AWAY_S = 5.0


class Link:
    """Two hosts, and the cable between them."""

    def __init__(self) -> None:
        self.hosts = tuple(f"tdpipe-{os.getpid()}-{end}" for end in "ab")

    def lay(self) -> None:
        """Set it up. Raises `OSError` or `CalledProcessError` where that is not allowed."""
        for host in self.hosts:
            _ip("netns", "add", host)
            _ip("-n", host, "link", "set", "lo", "up")
        one, other = self.hosts
        ends = ["netns", one, "type", "veth", "peer", "name", CARD, "netns", other]
        _ip("link", "add", CARD, *ends)
        for number, host in enumerate(self.hosts, 1):
            _ip("-n", host, "address", "add", f"192.0.2.{number}/24", "dev", CARD)
            _ip("-n", host, "link", "set", CARD, "up")

    def cut(self) -> None:
        """Nothing arrives any more."""
        _ip("-n", self.hosts[1], "link", "set", CARD, "down")

    def mend(self) -> None:
        """What is sent arrives again."""
        _ip("-n", self.hosts[1], "link", "set", CARD, "up")

    def remove(self) -> None:
        """Remove both hosts."""
        for host in self.hosts:
            subprocess.run(["ip", "netns", "delete", host], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """It joins the first stage's host and that of the second and third."""
    if os.geteuid():
        pytest.skip("needs root")
    link = Link()
    try:
        link.lay()
    except (OSError, subprocess.CalledProcessError) as error:
        link.remove()
        pytest.skip(f"no network namespaces here: {error}")
    one, other = link.hosts
    monkeypatch.setenv("TEST_HOSTS", f"{one} {other} {other}")
    monkeypatch.setenv("PYTHONPATH", str(HOSTS))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", CARD)
    yield link
    link.remove()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_streams_survive_a_cut_link(link: Link, tmp_path: Path) -> None:
    with Daemon(tmp_path, "-pp", "3", "--dtype", "float32", "--device", "cpu") as daemon:
        assert_apart(daemon)
        undisturbed = asyncio.run(run_clients(daemon.url, bodies()))
        clients, noticed_s = asyncio.run(stream_while_cut(link, daemon))
        assert noticed_s < NOTICE_S
        assert [stream.ends for stream in clients.streams] == [["length"]] * len(clients.streams)
        assert clients.texts == undisturbed.texts
        daemon.wait_for(lambda: daemon.metric("tdpipe_kv_blocks_used") == 0)
        assert_apart(daemon)


async def stream_while_cut(link: Link, daemon: Daemon) -> tuple[Clients, float]:
    """Streams that decode during the cut, and how long its detection took."""
    async with Clients(daemon.url, bodies()) as clients:
        await clients.reach("decode")
        with Witness(daemon) as witness:
            link.cut()
            cut_at = time.monotonic()
            noticed_s = await asyncio.to_thread(witness.wait_noticed, cut_at, 10 * NOTICE_S)
            held_up_s = witness.held_up_s(cut_at, cut_at + noticed_s)
            await asyncio.sleep(max(0.0, AWAY_S - noticed_s))
            assert not witness.lies(cut_at + NOTICE_S + held_up_s)
        assert not any(stream.ends for stream in clients.streams)
        link.mend()
    return clients, noticed_s - held_up_s


def assert_apart(daemon: Daemon) -> None:
    """The first stage is on one host, and the others are on the other."""
    stages = stages_of(daemon).items()
    hosts = [Path(f"/proc/{stage.pid}/ns/net").readlink() for _, stage in sorted(stages)]
    assert hosts[0] != hosts[1] == hosts[2]
    assert Path("/proc/self/ns/net").readlink() not in hosts

"""The sockets: named peers, delivery, and messages from peers without the secret."""

import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import AF_INET6, SOCK_STREAM, gaierror

import psutil
import pytest
import zmq

from wire import sockets
from wire.messages import Abort, EngineReady, Finished, FromServer, Hello, Submit, ToServer
from wire.sockets import Hub, Spoke

PATIENCE_S = 20.0

SECRET = "a secret of the tests"

needs_ipv6 = pytest.mark.skipif(
    "::1" not in {a.address for a in psutil.net_if_addrs()["lo"]}, reason="no IPv6 here"
)

ServerHub = Hub[FromServer]
ServerSpoke = Spoke[ToServer]


def make_hub(endpoint: str) -> ServerHub:
    """The end of the engine."""
    return Hub(endpoint, FromServer)


def make_secret_hub() -> ServerHub:
    """The same with a secret, on a free port."""
    return Hub("tcp://127.0.0.1:*", FromServer, SECRET)


def make_spoke(endpoint: str, name: str = "server") -> ServerSpoke:
    """The end of a server."""
    return Spoke(endpoint, name, ToServer)


def wait_until(happens: Callable[[], bool]) -> None:
    """Poll for a bounded time."""
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.001)


def receive(hub: ServerHub, count: int) -> list[tuple[str, FromServer]]:
    """The next messages that the hub receives."""
    got: list[tuple[str, FromServer]] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < count:
        assert time.monotonic() < deadline, f"received only {got}"
        hub.socket.poll(100)
        got.extend(hub.drain())
    return got


def receive_at(spoke: ServerSpoke, count: int) -> list[ToServer]:
    """The next messages that the spoke receives."""
    got: list[ToServer] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < count:
        assert time.monotonic() < deadline, f"received only {got}"
        spoke.wait(0.1)
        got.extend(spoke.drain())
    return got


def test_a_spoke_that_queues_nothing_ahead_sends_only_to_a_connected_hub(
    tmp_path: Path,
) -> None:
    endpoint = f"ipc://{tmp_path}/hub.sock"
    with Spoke[ToServer](endpoint, "server", ToServer, queues_ahead=False) as spoke:
        for _ in range(2):
            assert not any(spoke.send(Hello(7)) for _ in range(100))
            with make_hub(endpoint) as hub:
                wait_until(lambda: spoke.send(Hello(8)))
                assert receive(hub, 1) == [("server", Hello(8))]
            wait_until(lambda: not spoke.send(Hello(7)))


@pytest.fixture(params=["ipc", "tcp", pytest.param("tcp, IPv6", marks=needs_ipv6)])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An endpoint for a hub."""
    addresses = {"tcp": "tcp://127.0.0.1:*", "tcp, IPv6": "tcp://[::1]:*"}
    return addresses.get(request.param, f"ipc://{tmp_path}/hub.sock")


@pytest.fixture
def hub(endpoint: str) -> Iterator[ServerHub]:
    """A listening hub."""
    with make_hub(endpoint) as hub:
        yield hub


def test_messages_pass_both_ways_under_the_name_of_the_peer(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint, "alice") as alice, make_spoke(hub.endpoint, "bob") as bob:
        assert alice.send(Abort(1))
        assert bob.send(Abort(2))
        assert sorted(receive(hub, 2)) == [("alice", Abort(1)), ("bob", Abort(2))]
        assert hub.send("alice", Finished(1, "stop"))
        assert hub.send("bob", Finished(2, "length"))
        assert receive_at(alice, 1) == [Finished(1, "stop")]
        assert receive_at(bob, 1) == [Finished(2, "length")]


def test_one_encoded_message_can_be_sent_to_many_peers(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint, "alice") as alice, make_spoke(hub.endpoint, "bob") as bob:
        for spoke in (alice, bob):
            spoke.send(Hello())
        receive(hub, 2)
        payload = hub.encode(EngineReady(1, 2, 3, 4))
        for spoke, name in ((alice, "alice"), (bob, "bob")):
            assert hub.send_encoded(name, payload)
            assert receive_at(spoke, 1) == [EngineReady(1, 2, 3, 4)]


def test_the_order_of_messages_is_kept_both_ways(hub: ServerHub) -> None:
    count = 2000
    with make_spoke(hub.endpoint) as spoke:
        for i in range(count):
            assert spoke.send(Abort(i))
        assert receive(hub, count) == [("server", Abort(i)) for i in range(count)]
        for i in range(count):
            assert hub.send("server", Finished(i, "stop"))
        assert receive_at(spoke, count) == [Finished(i, "stop") for i in range(count)]


def test_a_drain_takes_all_that_has_arrived_and_does_not_wait(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as spoke:
        assert list(hub.drain()) == []
        assert list(spoke.drain()) == []
        spoke.send(Hello())
        receive(hub, 1)
        for i in range(10):
            hub.send("server", Finished(i, "stop"))
        # A later message through the same pipe: when it has arrived, all earlier ones have.
        spoke.send(Hello())
        receive(hub, 1)
        assert spoke.wait(PATIENCE_S)
        assert receive_at(spoke, 10) == [Finished(i, "stop") for i in range(10)]
        assert list(spoke.drain()) == []


def test_a_spoke_waits_no_longer_than_its_timeout(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as spoke:
        assert not spoke.wait(0)
        spoke.send(Hello())
        receive(hub, 1)
        hub.send("server", Finished(1, "stop"))
        assert spoke.wait(PATIENCE_S)


def test_a_spoke_may_connect_before_the_hub_exists(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/late.sock"
    with make_spoke(endpoint) as spoke:
        assert spoke.send(Hello())
        with make_hub(endpoint) as hub:
            assert receive(hub, 1) == [("server", Hello())]


def test_nothing_is_queued_for_a_peer_that_never_connected(hub: ServerHub) -> None:
    assert not hub.send("absent", Finished(1, "stop"))
    with make_spoke(hub.endpoint, "absent") as late:
        late.send(Hello())
        receive(hub, 1)
        assert hub.send("absent", Finished(2, "stop"))
        assert receive_at(late, 1) == [Finished(2, "stop")]


def test_a_disconnected_peer_is_unknown_again(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as spoke:
        spoke.send(Hello())
        receive(hub, 1)
        assert hub.send("server", Finished(1, "stop"))
    wait_until(lambda: not hub.send("server", Finished(2, "stop")))


def test_a_reconnecting_peer_takes_over_its_name(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as stopped:  # like a process that hangs: still connected
        stopped.send(Hello())
        receive(hub, 1)
        with make_spoke(hub.endpoint) as successor:
            successor.send(Hello())
            assert receive(hub, 1) == [("server", Hello())]
            assert hub.send("server", Finished(1, "stop"))
            assert receive_at(successor, 1) == [Finished(1, "stop")]
            assert list(stopped.drain()) == []


def test_a_taken_port_raises_and_leaves_nothing_open() -> None:
    # An existing socket file does not raise: libzmq replaces it.
    with make_hub("tcp://127.0.0.1:*") as hub:
        with pytest.raises(zmq.ZMQError, match="in use"):
            make_hub(hub.endpoint)
        gc.collect()  # an unclosed socket or context is a warning, and warnings are errors


@needs_ipv6
def test_a_name_with_only_an_ipv6_address_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def ipv4_of(name: str) -> str:
        raise gaierror(f"no IPv4 address: {name}")

    def addresses_of(name: str, *_: object) -> list[tuple[object, ...]]:
        assert name == "six.test"
        return [(AF_INET6, SOCK_STREAM, 6, "", ("::1", 0, 0, 0))]

    monkeypatch.setattr("wire.sockets.gethostbyname", ipv4_of)
    monkeypatch.setattr("wire.sockets.getaddrinfo", addresses_of)
    with Hub("tcp://six.test:*", FromServer, SECRET) as hub:
        assert hub.endpoint.startswith("tcp://[::1]:")
        with Spoke(hub.endpoint, "server", ToServer, SECRET) as spoke:
            spoke.send(Abort(5))
            assert receive(hub, 1) == [("server", Abort(5))]


def test_the_endpoint_contains_the_free_port(tmp_path: Path) -> None:
    with make_hub("tcp://127.0.0.1:*") as hub:
        port = int(hub.endpoint.removeprefix("tcp://127.0.0.1:"))
        assert 0 < port < 65536
    with make_hub(f"ipc://{tmp_path}/x.sock") as hub:
        assert hub.endpoint == f"ipc://{tmp_path}/x.sock"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_a_socket_file_is_accessible_only_to_its_owner(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with make_hub(f"ipc://{tmp_path}/hub.sock"):
            mode = (tmp_path / "hub.sock").stat().st_mode
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o700


def test_a_socket_file_left_by_a_dead_hub_is_taken_over(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/hub.sock"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint)
        left = tmp_path / "left.sock"
        (tmp_path / "hub.sock").rename(left)
    left.rename(tmp_path / "hub.sock")
    with make_hub(endpoint) as hub, make_spoke(endpoint) as spoke:
        spoke.send(Hello())
        assert receive(hub, 1) == [("server", Hello())]


def test_messages_sent_before_closing_still_arrive(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as spoke:
        spoke.send(Submit(1, b"\1\0\0\0", 5))
    assert receive(hub, 1) == [("server", Submit(1, b"\1\0\0\0", 5))]


def test_a_malformed_message_is_dropped_and_counted_and_the_next_is_read(
    hub: ServerHub,
) -> None:
    with make_spoke(hub.endpoint) as spoke:
        spoke.send(Finished(1, "stop"))  # a message of the other direction
        spoke.send(Hello())
        assert receive(hub, 1) == [("server", Hello())]
        assert hub.num_dropped == 1


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        (b"server", (b"GET / HTTP/1.1",)),
        (b"server", (b"",)),
        (b"server", (b"\x91" * 100_000,)),  # a list in a list in a list
        (b"server", (b"\xdd\xff\xff\xff\xff",)),  # claims to be four billion messages
        (b"server", (b"\x90", b"\x90")),
        (b"\xff\xfe", (b"\x90",)),
        (None, (b"\x90",)),  # ZeroMQ generates a name
    ],
)
def test_arbitrary_bytes_do_not_end_the_hub(
    name: bytes | None, frames: tuple[bytes, ...], hub: ServerHub
) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as outsider:
        if name is not None:
            outsider.setsockopt(zmq.IDENTITY, name)
        outsider.setsockopt(zmq.IPV6, "[" in hub.endpoint)
        outsider.connect(hub.endpoint)
        outsider.send_multipart(frames)
        wait_until(lambda: list(hub.drain()) == [] and hub.num_dropped == 1)
    with make_spoke(hub.endpoint, "ours") as spoke:
        spoke.send(Hello())
        assert receive(hub, 1) == [("ours", Hello())]


def test_a_peer_with_the_secret_is_accepted() -> None:
    with make_secret_hub() as hub, Spoke[ToServer](hub.endpoint, "ours", ToServer, SECRET) as spoke:
        spoke.send(Hello())
        assert receive(hub, 1) == [("ours", Hello())]
        assert hub.send("ours", Finished(1, "stop"))
        assert receive_at(spoke, 1) == [Finished(1, "stop")]
        assert hub.num_dropped == 0


@pytest.mark.parametrize("secret", [None, SECRET + "?"])
def test_peers_without_the_secret_are_refused_and_counted(secret: str | None) -> None:
    with make_secret_hub() as hub:
        with Spoke[ToServer](hub.endpoint, "server", ToServer, secret) as outsider:
            outsider.send(Hello())
            wait_until(lambda: list(hub.drain()) == [] and hub.num_dropped > 0)
            assert not hub.send("server", Finished(1, "stop"))
        with Spoke[ToServer](hub.endpoint, "server", ToServer, SECRET) as ours:
            ours.send(Hello(7))
            assert receive(hub, 1) == [("server", Hello(7))]


def test_a_spoke_with_a_secret_sends_nothing_to_a_hub_without_it() -> None:
    with (
        make_hub("tcp://127.0.0.1:*") as impostor,
        Spoke[ToServer](impostor.endpoint, "server", ToServer, SECRET) as spoke,
        make_spoke(impostor.endpoint, "other") as other,
    ):
        spoke.send(Submit(1, b"\1\0\0\0", 5))
        other.send(Hello())
        assert receive(impostor, 1) == [("other", Hello())]
        assert not impostor.send("server", Finished(1, "stop"))


@pytest.mark.parametrize("length", [0, 1, 12, 64])
def test_many_connections_without_zeromq_do_not_block_other_peers(length: int) -> None:
    with make_secret_hub() as hub, Spoke[ToServer](hub.endpoint, "ours", ToServer, SECRET) as ours:
        port = int(hub.endpoint.rpartition(":")[2])
        for _ in range(2000):  # more than ZeroMQ buffers in an unread monitor
            with socket.create_connection(("127.0.0.1", port)) as outsider:
                outsider.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"[:length])
        ours.send(Hello())
        assert receive(hub, 1) == [("ours", Hello())]


SPOKE = """
import sys
from wire import sockets
from wire.messages import Hello, ToServer
sockets.HEARTBEAT_INTERVAL_MS, sockets.HEARTBEAT_TIMEOUT_MS = 100, 500
with sockets.Spoke(sys.argv[1], "server", ToServer, sys.argv[2]) as spoke:
    while True:
        spoke.send(Hello())
        spoke.wait(0.05)
        list(spoke.drain())
"""


def test_a_peer_that_answers_no_heartbeats_is_disconnected_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection is as after a cut: TCP would keep it, and what is sent, for many minutes."""
    monkeypatch.setattr(sockets, "HEARTBEAT_INTERVAL_MS", 100)
    monkeypatch.setattr(sockets, "HEARTBEAT_TIMEOUT_MS", 500)
    with make_secret_hub() as hub:
        command = [sys.executable, "-c", SPOKE, hub.endpoint, SECRET]
        with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as peer:
            try:
                receive(hub, 1)
                peer.send_signal(signal.SIGSTOP)
                wait_until(lambda: not hub.send("server", Finished(1, "stop")))
                peer.send_signal(signal.SIGCONT)
                wait_until(lambda: hub.send("server", Finished(2, "stop")))
            finally:
                peer.kill()

"""The wire: real sockets, named peers, and honest answers about who is there."""

import gc
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from engine.messages import Abort, EngineReady, Finished, FromServer, Hello, Submit, ToServer
from engine.wire import Hub, Spoke

PATIENCE_S = 20.0

ServerHub = Hub[FromServer]
ServerSpoke = Spoke[ToServer]


def make_hub(endpoint: str) -> ServerHub:
    """The engine's end."""
    return Hub(endpoint, FromServer)


def make_spoke(endpoint: str, name: str = "server") -> ServerSpoke:
    """A server's end."""
    return Spoke(endpoint, name, ToServer)


def wait_until(happens: Callable[[], bool]) -> None:
    """Poll for a bounded time."""
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def receive(hub: ServerHub, count: int) -> list[tuple[str, FromServer]]:
    """The next messages that reach the hub."""
    got: list[tuple[str, FromServer]] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < count:
        assert time.monotonic() < deadline, f"only {got} came"
        hub.socket.poll(100)
        got.extend(hub.drain())
    return got


def receive_at(spoke: ServerSpoke, count: int) -> list[ToServer]:
    """The next messages that reach the spoke."""
    got: list[ToServer] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < count:
        assert time.monotonic() < deadline, f"only {got} came"
        spoke.wait(0.1)
        got.extend(spoke.drain())
    return got


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a hub may listen."""
    return f"ipc://{tmp_path}/hub.sock" if request.param == "ipc" else "tcp://127.0.0.1:*"


@pytest.fixture
def hub(endpoint: str) -> Iterator[ServerHub]:
    """A hub that listens."""
    with make_hub(endpoint) as hub:
        yield hub


def test_messages_pass_both_ways_under_the_peer_s_name(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint, "alice") as alice, make_spoke(hub.endpoint, "bob") as bob:
        assert alice.send(Abort(1))
        assert bob.send(Abort(2))
        assert sorted(receive(hub, 2)) == [("alice", Abort(1)), ("bob", Abort(2))]
        assert hub.send("alice", Finished(1, "stop"))
        assert hub.send("bob", Finished(2, "length"))
        assert receive_at(alice, 1) == [Finished(1, "stop")]
        assert receive_at(bob, 1) == [Finished(2, "length")]


def test_one_encoding_serves_many_peers(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint, "alice") as alice, make_spoke(hub.endpoint, "bob") as bob:
        for spoke in (alice, bob):
            spoke.send(Hello())
        receive(hub, 2)
        payload = hub.encode(EngineReady(1, 2, 3, 4))
        for spoke, name in ((alice, "alice"), (bob, "bob")):
            assert hub.send_encoded(name, payload)
            assert receive_at(spoke, 1) == [EngineReady(1, 2, 3, 4)]


def test_order_is_kept_both_ways(hub: ServerHub) -> None:
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
        # A later message through the same pipe: when it is there, all before it are.
        spoke.send(Hello())
        receive(hub, 1)
        assert spoke.wait(PATIENCE_S)
        assert receive_at(spoke, 10) == [Finished(i, "stop") for i in range(10)]
        assert list(spoke.drain()) == []


def test_a_spoke_waits_no_longer_than_it_is_told(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as spoke:
        assert not spoke.wait(0)
        spoke.send(Hello())
        receive(hub, 1)
        hub.send("server", Finished(1, "stop"))
        assert spoke.wait(PATIENCE_S)


def test_a_spoke_may_be_there_before_the_hub(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/late.sock"
    with make_spoke(endpoint) as spoke:
        assert spoke.send(Hello())
        with make_hub(endpoint) as hub:
            assert receive(hub, 1) == [("server", Hello())]


def test_nothing_is_queued_for_a_peer_that_was_never_there(hub: ServerHub) -> None:
    assert not hub.send("nobody", Finished(1, "stop"))
    with make_spoke(hub.endpoint, "nobody") as late:
        late.send(Hello())
        receive(hub, 1)
        assert hub.send("nobody", Finished(2, "stop"))
        assert receive_at(late, 1) == [Finished(2, "stop")]


def test_a_peer_that_has_gone_is_unknown_again(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as spoke:
        spoke.send(Hello())
        receive(hub, 1)
        assert hub.send("server", Finished(1, "stop"))
    wait_until(lambda: not hub.send("server", Finished(2, "stop")))


def test_a_peer_that_comes_back_takes_its_name_over(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as stopped:  # as a process that hangs: still connected
        stopped.send(Hello())
        receive(hub, 1)
        with make_spoke(hub.endpoint) as successor:
            successor.send(Hello())
            assert receive(hub, 1) == [("server", Hello())]
            assert hub.send("server", Finished(1, "stop"))
            assert receive_at(successor, 1) == [Finished(1, "stop")]
            assert list(stopped.drain()) == []


def test_a_taken_port_raises_and_leaves_nothing_open() -> None:
    # A socket file that is taken does not: libzmq binds anew in its place.
    with make_hub("tcp://127.0.0.1:*") as hub:
        with pytest.raises(zmq.ZMQError, match="in use"):
            make_hub(hub.endpoint)
        gc.collect()  # an unclosed socket or context is a warning, and warnings are errors


def test_a_free_port_is_named(tmp_path: Path) -> None:
    with make_hub("tcp://127.0.0.1:*") as hub:
        port = int(hub.endpoint.removeprefix("tcp://127.0.0.1:"))
        assert 0 < port < 65536
    with make_hub(f"ipc://{tmp_path}/x.sock") as hub:
        assert hub.endpoint == f"ipc://{tmp_path}/x.sock"


def test_a_socket_file_is_the_owner_s_alone(tmp_path: Path) -> None:
    with make_hub(f"ipc://{tmp_path}/hub.sock"):
        mode = (tmp_path / "hub.sock").stat().st_mode
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


def test_what_was_sent_before_the_end_still_arrives(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as spoke:
        spoke.send(Submit(1, b"\1\0\0\0", 5))
    assert receive(hub, 1) == [("server", Submit(1, b"\1\0\0\0", 5))]


def test_a_message_that_is_not_ours_is_an_error_and_the_next_is_read(hub: ServerHub) -> None:
    with make_spoke(hub.endpoint) as spoke:
        spoke.send(Finished(1, "stop"))  # a word of the other direction
        spoke.send(Hello())
        assert hub.socket.poll(int(PATIENCE_S * 1000))
        with pytest.raises(msgspec.DecodeError):
            list(hub.drain())
        assert receive(hub, 1) == [("server", Hello())]

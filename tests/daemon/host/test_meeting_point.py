"""The meeting point: the first node says why it cannot listen, and names the setting."""

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from configs.config import Config
from daemon.host import meeting_point
from daemon.host.meeting_point import AddressError, check_node, explain_engine

SECRET = "x" * 16
NOBODY = "203.0.113.9"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that is in use, while the one before it and three after it are free."""
    while True:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        try:
            for free in (port - 1, port + 1, port + 2, port + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", free))
        except OSError:
            listener.close()
            continue
        with listener:
            yield port
        return


def config_of(**settings: Any) -> Config:
    """The first of two nodes."""
    return Config.of(**{"nnodes": 2, "cluster_secret": SECRET, **settings})


def refusal(**settings: Any) -> str:
    """The line about addresses that cannot work."""
    with pytest.raises(AddressError) as found:
        check_node(config_of(**settings))
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_port_in_use_is_named_with_its_setting(taken: int) -> None:
    line = refusal(master_port=taken)
    assert line.startswith(f"port {taken} (master_port) is in use on 127.0.0.1; stop what uses it")
    line = refusal(master_port=taken - 1)
    assert line.startswith(f"port {taken} (the store's, master_port + 1) is in use on 127.0.0.1")
    assert "another --master-port on all nodes" in line
    for endpoint in (f"tcp://127.0.0.1:{taken}", f"tcp://*:{taken}", f"tcp://0.0.0.0:{taken}"):
        line = refusal(master_port=taken + 1, stage_endpoint=endpoint)
        assert f"port {taken} (stage_endpoint) is in use" in line
        assert "--stage-endpoint on all nodes" in line


def test_free_ports_and_other_nodes_are_not_refused(taken: int) -> None:
    check_node(config_of(master_port=taken + 1))
    check_node(config_of(master_port=taken, node_rank=1, headless=True))
    check_node(Config.of(master_port=taken))
    check_node(config_of(master_port=taken + 1, stage_endpoint=f"tcp://127.0.0.1:{taken + 3}"))


def test_an_address_of_another_host_is_named_with_its_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meeting_point.addresses, "describe_own", lambda: "10.0.0.7 (eth0)")
    assert refusal(master_addr=NOBODY) == (
        f"master_addr {NOBODY}: this host has no such address; on the first node it must be one "
        "of its own; this host has 10.0.0.7 (eth0)"
    )
    assert refusal(node_ip=NOBODY) == (
        f"node_ip: no interface of this node has the address {NOBODY} (--node-ip); it has "
        "10.0.0.7 (eth0)"
    )
    headless: dict[str, Any] = {"node_rank": 1, "headless": True}
    assert "--node-ip" in refusal(node_ip=NOBODY, **headless)
    check_node(config_of(master_addr=NOBODY, **headless))


def test_a_name_that_is_not_known_is_named_on_the_first_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    line = refusal(master_addr="nonexistent.invalid")
    assert line.startswith("master_addr nonexistent.invalid: this name is not known here (Name or")


def test_what_keeps_a_running_engine_from_listening_is_explained(taken: int) -> None:
    config = config_of(master_port=taken)
    assert "(master_port) is in use" in explain_engine(config, errno.EADDRINUSE)
    assert not explain_engine(config, errno.EACCES)
    assert not explain_engine(Config.of(master_port=taken), errno.EADDRINUSE)
    # The store's port is the stages' affair: they may hold it already.
    assert not explain_engine(config_of(master_port=taken - 1), errno.EADDRINUSE)

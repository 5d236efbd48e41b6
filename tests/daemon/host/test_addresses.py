"""Addresses: one rule for names with two kinds of address, and the addresses of this host."""

import socket
from typing import Any

import pytest

from configs.config import Config
from configs.schema.nodes import NodesConfig
from daemon.host import addresses
from workers import stage_restarts
from workers.comm import rendezvous

V6_FIRST = [("::1", socket.AF_INET6), ("127.0.0.1", socket.AF_INET)]


def know(monkeypatch: pytest.MonkeyPatch, *known: tuple[str, socket.AddressFamily]) -> None:
    """The name `both.test` has these addresses, in this order."""
    real = socket.getaddrinfo

    def fake(host: str, port: int, *args: Any, **named: Any) -> list[Any]:
        hosts = [address for address, _ in known] if host == "both.test" else [host]
        return [found for each in hosts for found in real(each, port, *args, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", fake)


def test_a_name_with_both_kinds_of_address_is_used_with_ipv4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    know(monkeypatch, *V6_FIRST)
    assert addresses.resolve("both.test", 7) == (socket.AF_INET, ("127.0.0.1", 7))
    assert addresses.numeric("both.test") == "127.0.0.1"
    know(monkeypatch, V6_FIRST[0])
    assert addresses.numeric("both.test") == "::1"


def test_engine_store_and_stages_use_the_same_address_of_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    know(monkeypatch, *V6_FIRST)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = NodesConfig(nnodes=2, master_addr="both.test", master_port=port - 1)
    with rendezvous.listen(config) as listener:
        assert listener.getsockname() == ("127.0.0.1", port)
    assert stage_restarts.own_address(config) == "127.0.0.1"
    endpoint = Config(nodes=config, runtime={"cluster_secret": "x" * 16}).nodes.endpoint()  # type: ignore[arg-type]
    assert addresses.numeric_endpoint(endpoint) == f"tcp://127.0.0.1:{port - 1}"


@pytest.mark.parametrize(
    ("endpoint", "numeric"),
    [
        ("ipc:///run/x/stages.sock", "ipc:///run/x/stages.sock"),
        ("tcp://*:7000", "tcp://*:7000"),
        ("tcp://10.0.0.1:*", "tcp://10.0.0.1:*"),
        ("tcp://[::1]:7000", "tcp://[::1]:7000"),
    ],
)
def test_an_endpoint_without_a_name_stays_as_it_is(endpoint: str, numeric: str) -> None:
    assert addresses.numeric_endpoint(endpoint) == numeric


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        ("127.0.1.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("fe80::1%lo", False),
    ],
)
def test_an_address_that_no_other_host_reaches_is_told(address: str, *, is_loopback: bool) -> None:
    assert addresses.is_loopback(address) == is_loopback


def test_an_interface_is_found_however_its_address_is_written() -> None:
    loopback = addresses.interface_of_address("127.0.0.1")
    assert loopback == stage_restarts.LOOPBACK
    assert addresses.interface_of_address("::ffff:127.0.0.1") == loopback
    assert addresses.interface_of_address("203.0.113.9") is None
    assert "127.0.0.1" not in addresses.describe_own()

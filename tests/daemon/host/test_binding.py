"""Binding: an address that cannot be had is named, with the setting to change."""

import socket

import pytest

from daemon.host.binding import ListenError, bind


def test_a_port_that_another_socket_listens_on_is_refused_and_free_afterwards() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ListenError, match=f"port {port} is already in use on 127.0.0.1.*--port"
        ):
            bind("127.0.0.1", port)
    bind("127.0.0.1", port).close()


def test_a_bound_port_that_is_closed_again_can_be_listened_on() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
    with bind("127.0.0.1", port) as second:
        second.listen()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "cannot listen on host 192.0.2.1: this machine has no such address"),
        ("no-such-host.invalid", "cannot listen on host no-such-host.invalid: "),
    ],
)
def test_a_host_that_is_not_this_machine_is_named(host: str, words: str) -> None:
    with pytest.raises(ListenError, match=words):
        bind(host, 0)

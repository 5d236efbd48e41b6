"""Binding: a socket at the address of the HTTP server, or the reason why there can be none."""

import errno
import socket

from daemon.start_error import StartError


class ListenError(StartError):
    """The server cannot listen; the message is one line for the user."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet; port 0 is any free one.

    Raises `ListenError`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on host {host}: {error.strerror}") from error
    bound = socket.socket(family, kind, protocol)
    try:
        # Without it, connections of an earlier daemon that are not forgotten yet would block it.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ListenError(explain(error, host, port)) from error
    return bound


def explain(error: OSError, host: str, port: int) -> str:
    """Why nothing can listen there, in one line."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is already in use on {host}; stop what uses it, or give another --port"
    if error.errno == errno.EACCES:
        return f"this user has no permission to listen on port {port}; give a --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on host {host}: this machine has no such address"
    return f"cannot listen on {host}:{port}: {error.strerror}"

"""Unix sockets: listening on a path with file permissions, instead of on a port."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISSOCK

from daemon.host.binding import ListenError
from server.http.listener import BACKLOG


@contextmanager
def listen_at(path: Path, permissions: int) -> Iterator[socket.socket]:
    """A listening socket; its file exists as long as the block runs. Raises `ListenError`.

    A stale socket file, on which no process listens, is replaced.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _clear(path)
            listener.bind(str(path))
            # Clients cannot connect before `listen`, so the permissions are set in time.
            path.chmod(permissions)
            listener.listen(BACKLOG)
        except OSError as error:
            raise ListenError(f"cannot listen on {path}: {_explain(error)}") from error
        listener.setblocking(False)
        own = path.stat().st_ino
        try:
            yield listener
        finally:
            with suppress(OSError):
                if path.stat().st_ino == own:  # not the file of a later server
                    path.unlink()


def _clear(path: Path) -> None:
    """Remove a stale socket. Raises `OSError` if a server listens there, or for another file."""
    try:
        if not S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "the file exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(errno.EADDRINUSE, "another server listens there")


def _explain(error: OSError) -> str:
    return error.strerror or str(error)

"""The Unix socket: listening on a path, with rights, in the place of a port."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISSOCK

from server.http.listener import BACKLOG, ListenError


@contextmanager
def listen_at(path: Path, permissions: int) -> Iterator[socket.socket]:
    """A listening socket whose file is there as long as the block runs. Raises `ListenError`.

    A socket file that nobody listens on any more is taken over.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _clear(path)
            listener.bind(str(path))
            # Nobody can connect before `listen`, and then the rights are as they should be.
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
                if path.stat().st_ino == own:  # and not a successor's
                    path.unlink()


def _clear(path: Path) -> None:
    """Remove a dead server's socket. Raises `OSError` for a live one's, or for another file."""
    try:
        if not S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
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

"""Unix sockets: permissions from the start, no takeover of a socket in use, no file left."""

import socket
import stat
from pathlib import Path

import pytest

from daemon.host.binding import ListenError
from server.http.unix_socket import listen_at


@pytest.mark.parametrize("permissions", [0o600, 0o660, 0o666])
def test_its_permissions_are_set(tmp_path: Path, permissions: int) -> None:
    path = tmp_path / "socket"
    with listen_at(path, permissions) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == permissions
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        listener.accept()[0].close()
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listen_at(path, 0o600), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen_at(path, 0o600):
        with pytest.raises(ListenError, match="another server listens there"):
            listen_at(path, 0o600).__enter__()
        assert path.exists()


def test_another_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ListenError, match=r"notes\.txt: the file exists and is not a socket"):
        listen_at(path, 0o600).__enter__()
    assert path.read_text() == "mine"


def test_the_error_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="no/such/socket: No such file or directory"):
        listen_at(tmp_path / "no/such/socket", 0o600).__enter__()


def test_the_socket_of_a_later_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen_at(path, 0o600):
        path.rename(tmp_path / "moved")
        path.write_text("a successor's")
    assert path.exists()

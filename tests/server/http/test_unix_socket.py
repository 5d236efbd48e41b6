"""The Unix socket: rights from the first moment, no takeover of a live one, nothing left behind."""

import socket
import stat
from pathlib import Path

import pytest

from server.http.listener import ListenError
from server.http.unix_socket import listen_at


@pytest.mark.parametrize("permissions", [0o600, 0o660, 0o666])
def test_it_has_the_rights_it_should(tmp_path: Path, permissions: int) -> None:
    path = tmp_path / "socket"
    with listen_at(path, permissions) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == permissions
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        listener.accept()[0].close()
    assert not path.exists()


def test_a_dead_server_s_socket_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listen_at(path, 0o600), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_live_server_s_socket_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen_at(path, 0o600):
        with pytest.raises(ListenError, match="another server listens there"):
            listen_at(path, 0o600).__enter__()
        assert path.exists()


def test_another_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ListenError, match=r"notes\.txt: there is a file that is no socket"):
        listen_at(path, 0o600).__enter__()
    assert path.read_text() == "mine"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="no/such/socket: No such file or directory"):
        listen_at(tmp_path / "no/such/socket", 0o600).__enter__()


def test_a_successor_s_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen_at(path, 0o600):
        path.rename(tmp_path / "moved")
        path.write_text("a successor's")
    assert path.exists()

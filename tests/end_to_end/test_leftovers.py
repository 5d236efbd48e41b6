"""What a killed daemon has left is removed by the next one, and never that of a live one."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.daemon import ROOT, Daemon, all_gone
from tests.kernels import prepare_data_dir

TIMEOUT_S = 120.0


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The folder for temporary ones, with a path that leaves room for those of sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def serve(tmp_path: Path, temporary: Path) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """Starts daemons without a runtime_dir; all end with the test."""
    data_dir = prepare_data_dir(tmp_path / "data")
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        settings = ["--port", "0", "--data-dir", str(data_dir), "--profile-seconds", "0.3"]
        command = [sys.executable, str(ROOT / "tdpipe.py"), "serve", "-pp", "1", *settings]
        started.append(subprocess.Popen(command, env=os.environ | {"TMPDIR": str(temporary)}))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(TIMEOUT_S)


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll until true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def folders(temporary: Path) -> set[Path]:
    """Those of daemons whose engine and server have begun."""
    return {path.parent for path in temporary.glob("tdpipe-*/stages.sock")}


def test_the_folder_of_a_killed_daemon_is_removed_by_the_next_start(
    serve: Callable[[], "subprocess.Popen[bytes]"], temporary: Path
) -> None:
    killed = serve()
    wait_for(lambda: len(folders(temporary)) == 1)
    (left,) = folders(temporary)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    assert all_gone(children, TIMEOUT_S)
    assert (left / "config.json").exists()
    live = serve()
    wait_for(lambda: bool(folders(temporary)) and not left.exists())
    (kept,) = folders(temporary)
    serve()
    wait_for(lambda: len(folders(temporary)) == 2)
    assert kept in folders(temporary)
    live.terminate()
    assert live.wait(TIMEOUT_S) == 0
    assert not kept.exists()


def test_a_killed_daemon_s_own_folder_does_not_block_the_next_start(tmp_path: Path) -> None:
    killed = Daemon(tmp_path, "-pp", "1", "--uds", str(tmp_path / "http.sock"))
    killed.start()
    killed.wait_for(lambda: (tmp_path / "http.sock").exists(), TIMEOUT_S)
    killed.wait_for(lambda: (tmp_path / "run" / "stages.sock").exists(), TIMEOUT_S)
    children = psutil.Process(killed.process.pid).children(recursive=True)
    killed.process.kill()
    killed.process.wait(TIMEOUT_S)
    assert all_gone(children, TIMEOUT_S)
    with Daemon(tmp_path, "-pp", "1") as daemon:
        assert daemon.get("/ready")[0] == 200
    assert not (tmp_path / "run" / "config.json").exists()

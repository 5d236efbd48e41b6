"""The log file of a real daemon: after a rotation every process writes to the new one."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.daemon import LOG_FILE, Daemon

NAMES = ("tdpipe", "server", "engine", "stage 0", "stage 1", "predictor")


def log_of(process: psutil.Process) -> str:
    """The file that is the process's standard error."""
    return str(Path(f"/proc/{process.pid}/fd/2").readlink())


@pytest.mark.long
def test_after_a_rotation_every_process_writes_to_the_new_file(predicting: Daemon) -> None:
    path, moved = predicting.folder / LOG_FILE, predicting.folder / f"{LOG_FILE}.1"
    predicting.wait_for(lambda: all(f"[{name}] " in path.read_text() for name in NAMES), 120)
    num_restarts = predicting.metric("tdpipe_pipeline_restarts_total")
    processes = [psutil.Process(predicting.process.pid)]
    processes += processes[0].children(recursive=True)
    assert {log_of(process) for process in processes} == {str(path)}
    path.rename(moved)
    predicting.process.send_signal(signal.SIGHUP)
    predicting.wait_for(lambda: {log_of(process) for process in processes} == {str(path)})
    predicting.wait_for(lambda: all(f"[{name}] reopened" in path.read_text() for name in NAMES))
    assert predicting.get("/v1/models")[0] == 200
    predicting.wait_for(lambda: "GET /v1/models 200" in path.read_text())
    assert predicting.metric("tdpipe_pipeline_restarts_total") == num_restarts
    assert all(process.is_running() for process in processes)


def test_a_failure_is_printed_where_the_daemon_was_started(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "/nowhere/at/all", "--log-file", str(tmp_path / "tdpipe.log"))
    daemon.start()
    assert daemon.wait_end() == 1
    for log in (daemon.log(), (tmp_path / "tdpipe.log").read_text()):
        assert "no folder /nowhere/at/all" in log.splitlines()[-1]


def test_an_invalid_log_file_is_reported_before_anything_starts(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--log-file", "/nowhere/log")
    daemon.start()
    assert daemon.wait_end() == 2
    assert daemon.log().startswith("tdpipe: error: cannot write to the log file /nowhere/log")
    assert daemon.log().count("\n") == 1

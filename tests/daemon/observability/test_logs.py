"""Logs: text to read, objects for collectors, and the same lines in both."""

import json
import logging
import subprocess
import sys

import pytest

from configs.schema.runtime import LogConfig
from daemon.observability import logs


def logged(config: LogConfig, capsys: pytest.CaptureFixture[str]) -> str:
    """The output of a process with these settings: a line, and one with an exception."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    try:
        log = logs.set_up("server", config)
        log.info("hello %s", "wörld", extra=logs.fields(status=200))
        try:
            raise LookupError("a bug")
        except LookupError:
            log.exception("it failed")
        log.debug("too much")
        sys.stderr.flush()
    finally:
        root.handlers[:] = handlers
    return capsys.readouterr().err


def test_text_has_the_process_in_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = logged(LogConfig(), capsys).splitlines()
    assert lines[0].startswith("INFO ")
    assert lines[0].endswith("[server] hello wörld")
    assert lines[-1] == "LookupError: a bug"
    assert "too much" not in lines


def test_each_json_line_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = map(json.loads, logged(LogConfig(log_format="json"), capsys).splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "process": "server",
        "message": "hello wörld",
        "status": 200,
    }
    assert second["level"] == "error"
    assert "LookupError: a bug" in second["exception"]


def test_in_json_an_uncaught_exception_is_an_object_too() -> None:
    script = """if True:
    import threading, warnings
    from daemon.observability import logs
    from configs.schema.runtime import LogConfig
    logs.set_up("server", LogConfig(log_format="json"))
    warnings.warn("odd")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    raise LookupError("a bug")
    """
    run = subprocess.run(
        [sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1
    warning, in_thread, last = map(json.loads, run.stderr.splitlines())
    assert (warning["level"], in_thread["level"], last["level"]) == (
        "warning",
        "critical",
        "critical",
    )
    assert "UserWarning: odd" in warning["message"]
    assert "ZeroDivisionError" in in_thread["exception"]
    assert "LookupError: a bug" in last["exception"]


def test_less_is_logged_at_a_higher_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hello" not in logged(LogConfig(log_level="error"), capsys)

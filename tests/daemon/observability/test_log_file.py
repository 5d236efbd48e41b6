"""The log file: lines are whole, SIGHUP reopens it in every process and ends none."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.observability import log_file

# A process with a log file, a child that follows it and one without any log file.
SCRIPT = """if True:
    import os, signal, subprocess, sys, time
    from pathlib import Path
    from daemon.observability import log_file
    from daemon.observability import logs
    from configs.schema.runtime import LogConfig

    path, moved = Path(sys.argv[1]), Path(sys.argv[2])
    terminal = log_file.begin(path)
    log = logs.set_up("parent", LogConfig(), terminal)
    child = subprocess.Popen([sys.executable, "-c", '''if True:
        import sys
        from daemon.observability import log_file
        from daemon.observability import logs
        from configs.schema.runtime import LogConfig
        log_file.follow()
        log = logs.set_up("child", LogConfig())
        log.info("before")
        for line in sys.stdin:
            log.info("after")
            print("stray", file=sys.stderr)
    '''], stdin=subprocess.PIPE, text=True)
    helper = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    log.info("before")
    log.error("bad")

    def wait_for(path, *words):
        deadline = time.monotonic() + 30
        while not (path.exists() and all(word in path.read_text() for word in words)):
            assert time.monotonic() < deadline, (path, words)
            time.sleep(0.01)

    wait_for(path, "[parent] before", "[child] before")
    path.rename(moved)
    os.kill(os.getpid(), signal.SIGHUP)
    wait_for(path, "[parent] reopened", "[child] reopened")
    log.info("after")
    child.communicate("go on")
    assert child.returncode == 0
    assert helper.poll() is None
    helper.communicate()
    assert helper.returncode == 0
"""


def run(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run in a process of its own: the script changes the whole process."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_moved_file_is_closed_by_all_that_follow(tmp_path: Path) -> None:
    path, moved = tmp_path / "log", tmp_path / "log.1"
    done = run(SCRIPT, path, moved)
    assert done.returncode == 0, done.stderr + path.read_text()
    old, new = moved.read_text(), path.read_text()
    assert "before" in old
    assert "after" not in old
    assert "before" not in new
    assert new.count("reopened the log file") == 2
    for word in ("[parent] after", "[child] after", "stray"):
        assert word in new
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("[parent] bad\n"), "errors appear on the terminal as well"
    assert path.stat().st_mode & 0o777 == 0o640 & ~0o022


def test_a_process_with_its_own_file_leaves_that_of_its_parent(tmp_path: Path) -> None:
    script = """if True:
    import os, signal, sys, time
    from pathlib import Path
    from daemon.observability import log_file
    first, second = Path(sys.argv[1]), Path(sys.argv[2])
    log_file.begin(first)
    log_file.begin(second)
    for _ in range(20):  # either thread may take the signal
        second.unlink()
        os.kill(os.getpid(), signal.SIGHUP)
        deadline = time.monotonic() + 30
        # It is made before standard error becomes it.
        while not (second.exists() and os.path.sameopenfile(2, os.open(second, os.O_RDONLY))):
            assert time.monotonic() < deadline, "the file was not reopened"
            time.sleep(0.001)
    print("end", file=sys.stderr)
    """
    first, second = tmp_path / "first", tmp_path / "second"
    done = run(script, first, second)
    assert done.returncode == 0, done.stderr + first.read_text()
    assert second.read_text() == "end\n"


def test_without_a_log_file_sighup_keeps_its_default() -> None:
    script = """if True:
    import os, signal
    from daemon.observability import log_file
    log_file.follow()
    os.kill(os.getpid(), signal.SIGHUP)
    """
    assert run(script).returncode == -signal.SIGHUP


def test_long_lines_of_many_processes_stay_whole(tmp_path: Path) -> None:
    script = """if True:
    import os, sys
    from pathlib import Path
    from daemon.observability import log_file
    from daemon.observability import logs
    from configs.schema.runtime import LogConfig
    log_file.begin(Path(sys.argv[1]))
    children = []
    for letter in "abcd":
        child = os.fork()
        if not child:
            log = logs.set_up(letter, LogConfig())
            for _ in range(50):
                log.info(letter * 20_000)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    """
    done = run(script, tmp_path / "log")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 200
    for line in lines:
        text = line.rpartition(" ")[2]
        assert text == text[0] * 20_000


@pytest.mark.parametrize("where", ["nowhere/log", "."])
def test_an_invalid_file_is_named(where: str, tmp_path: Path) -> None:
    path = tmp_path / where
    with pytest.raises(log_file.LogFileError, match="cannot write to the log file") as caught:
        log_file.begin(path)
    assert str(path) in str(caught.value)

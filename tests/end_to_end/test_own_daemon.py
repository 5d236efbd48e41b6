"""`tdpipe chat --serve`: a daemon for one chat, which ends with it however that ends."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from configs.schema.model import DEMO_MODEL
from tests.end_to_end.daemon import ROOT, all_gone
from tests.kernels import prepare_data_dir

TIMEOUT_S = 120.0


def chat(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start the chat, with a new folder for temporary files."""
    data_dir = prepare_data_dir(folder / "data")
    settings = ["--data-dir", str(data_dir), "--profile-seconds", "0.3"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tdpipe.py"), "chat", *arguments, *settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_the_daemon_is_there_for_one_answer(tmp_path: Path) -> None:
    question = ["Count to seven in words.", "--temperature", "0"]
    with chat(tmp_path, *question, "--serve", str(DEMO_MODEL), "-pp", "2") as chatting:
        answer, log = chatting.communicate(timeout=TIMEOUT_S)
    assert (chatting.returncode, answer) == (0, "one two three four five six seven\n"), log
    assert "listening on the Unix socket" in log  # printed while it starts
    assert "stopped" not in log


def test_a_daemon_that_cannot_start_says_why(tmp_path: Path) -> None:
    with chat(tmp_path, "Hello", "--serve", "/nowhere/at/all") as chatting:
        answer, log = chatting.communicate(timeout=TIMEOUT_S)
    assert (chatting.returncode, answer) == (1, "")
    assert "there is no folder /nowhere/at/all" in log
    assert log.endswith("tdpipe: error: the daemon could not start\n")


def test_a_killed_chat_leaves_no_process(tmp_path: Path) -> None:
    with chat(tmp_path, "--serve", str(DEMO_MODEL), "-pp", "1") as chatting:
        started: list[psutil.Process] = []
        deadline = time.monotonic() + TIMEOUT_S
        while len(started) < 4:  # the supervisor and its children
            assert time.monotonic() < deadline
            started = psutil.Process(chatting.pid).children(recursive=True)
            time.sleep(0.05)
        chatting.kill()
        assert all_gone(started, 30.0)
        chatting.communicate()

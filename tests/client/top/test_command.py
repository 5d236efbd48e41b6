"""`tdpipe top` against a server with a scripted engine: in a terminal, once, and as lines."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from rich.console import Console

import tdpipe
from client.top.picture import Picture, duration
from client.top.recent import Recent
from tests.client.top.test_recent import status, steps
from tests.server.world import Daemon, serving, stats
from wire.pipeline_status import Sample

PATIENCE_S = 30.0


class Terminal:
    """`tdpipe top` in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._end, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tdpipe", "top", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
        )
        os.close(theirs)
        self.text = ""

    def wait_for(self, text: str) -> None:
        """Read until the text has been shown."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text} is not in {self.text[-2000:]}"
            if select.select([self._end], [], [], 0.5)[0]:
                piece = os.read(self._end, 65536).decode(errors="replace")
                self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", piece)

    def press(self, keys: str) -> None:
        """Press keys."""
        self.text = ""
        os.write(self._end, keys.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


@contextmanager
def busy(folder: Path, **settings: str) -> Iterator[Daemon]:
    """A daemon of two stages with some steps, in which sequences are live."""
    with serving(folder, pipeline_parallel_size=2, **settings) as daemon:
        daemon.engine.steps = [(0, 7, 0, 3, 60, 0.4, 0.6), (1, 7, 0, 3, 60, 0.6, 0.8)]
        daemon.engine.send(stats(live=5, waiting=2, blocks_used=10, blocks_total=40))
        yield daemon


def test_in_a_terminal_it_draws_until_q_is_pressed(tmp_path: Path) -> None:
    with busy(tmp_path) as daemon, Terminal("--url", daemon.url) as terminal:
        terminal.wait_for("little")
        terminal.wait_for("stage 1")
        terminal.wait_for("25%")
        terminal.press("q")
        assert terminal.process.wait(PATIENCE_S) == 0


def test_a_daemon_that_is_not_there_is_waited_for() -> None:
    with Terminal("--url", "http://127.0.0.1:9") as terminal:
        terminal.wait_for("trying again")
        terminal.press("q")
        assert terminal.process.wait(PATIENCE_S) == 0


def test_once_prints_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with busy(tmp_path, api_key="secret") as daemon:
        assert tdpipe.main(["top", "--once", "--url", daemon.url, "--api-key", "secret"]) == 0
        shown = capsys.readouterr().out
        assert "stage 0" in shown
        assert "KV cache" in shown
        assert tdpipe.main(["top", "--once", "--url", daemon.url, "--api-key", "wrong"]) == 1
    assert "the daemon refuses (401)" in capsys.readouterr().err


def test_without_a_terminal_it_prints_a_line_each_second(tmp_path: Path) -> None:
    """The first line may be of a sample from before the engine's figures came."""
    command = [sys.executable, "-m", "tdpipe", "top", "--url"]
    with (
        busy(tmp_path) as daemon,
        subprocess.Popen([*command, daemon.url], stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        heading, _, *lines = (process.stdout.readline().split() for _ in range(4))
        process.terminate()
    assert heading[:3] == ["time", "state", "phase"]
    assert [line[1:3] for line in lines] == [["ready", "decode"]] * 2
    assert all(len(line) == len(heading) for line in lines)


def test_without_colours_phases_are_letters_and_bubbles_dots() -> None:
    recent = Recent()
    done = steps((0, "p", 70.0, 85.0), (1, "d", 85.0, 100.0))
    recent.take(status(100.0, Sample(100.0, "ready", live=1), steps=done))
    text = io.StringIO()
    Console(file=text, width=50, color_system=None).print(Picture(recent))
    tracks = [line for line in text.getvalue().splitlines() if line.startswith("stage ")]
    assert re.search(r"p{15}\.{15}", tracks[0])
    assert re.search(r"\.{15}d{15}", tracks[1])


@pytest.mark.parametrize("width", [20, 40, 200])
def test_it_fits_any_width(width: int) -> None:
    recent = Recent()
    recent.take(status(100.0, Sample(100.0, "ready", live=1), steps=steps((0, "p", 70.0, 85.0))))
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(Picture(recent))
    assert max(map(len, text.getvalue().splitlines())) <= width


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0012, "1.2 ms"), (0.087, "87 ms"), (0.9999, "1.00 s"), (12.0, "12.00 s")],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text

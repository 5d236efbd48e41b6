"""Runs daemons, routers and loads from start to end, for benchmarks that compare settings."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S, RUN_TIMEOUT_S, END_TIMEOUT_S = 300.0, 300.0, 60.0


def measure(
    model: Path, num_stages: int, flags: Sequence[str], load: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Return the report of the load client with flags `load` about a daemon with `flags`.

    Raises `OSError` or `subprocess.SubprocessError` if either fails or takes too long.
    """
    with serving(model, num_stages, flags, folder) as url:
        report = folder / "report.json"
        client = [sys.executable, str(ROOT / "tdpipe.py"), "bench", url, f"--output={report}"]
        client += ["--prompts=token-ids"]
        subprocess.run(
            [*client, *load], check=True, timeout=RUN_TIMEOUT_S, cwd=ROOT, capture_output=True
        )
        figures: dict[str, Any] = json.loads(report.read_text())
        return figures


@contextmanager
def serving(model: Path, num_stages: int, flags: Sequence[str], folder: Path) -> Iterator[str]:
    """Run a daemon with CPU stages of one thread each during the block; yields its URL.

    `folder` is created and keeps the log. Raises `OSError` if the daemon does not start.
    """
    command = ["serve", str(model), "--port=0", f"--pipeline-parallel-size={num_stages}"]
    command += ["--device=cpu", "--num-threads=1", f"--data-dir={folder / 'data'}", *flags]
    with _running(command, folder) as url:
        yield url


@contextmanager
def routing(urls: Sequence[str], flags: Sequence[str], folder: Path) -> Iterator[str]:
    """Run a router before the daemons at `urls` during the block; yields its URL when all serve.

    `folder` is created and keeps the log. Raises `OSError` if the router does not start.
    """
    command = ["route", "--port=0", f"--instances={','.join(urls)}", *flags]
    with _running(command, folder) as url:
        ends_at = time.monotonic() + START_TIMEOUT_S
        while _num_up(url) < len(urls):
            if time.monotonic() > ends_at:
                raise OSError("the router did not find all daemons")
            time.sleep(0.05)
        yield url


def log_of(folder: Path) -> str:
    """Return the daemon's log."""
    return (folder / "log").read_text(errors="replace")


@contextmanager
def _running(command: Sequence[str], folder: Path) -> Iterator[str]:
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tdpipe.py"), *command], stdout=log, stderr=log, cwd=ROOT
        )
    try:
        yield _wait_ready(folder, process)
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _num_up(url: str) -> int:
    """How many instances of a router take requests."""
    with urllib.request.urlopen(f"{url}/instances", timeout=5) as answer:
        return sum(each["state"] == "up" for each in json.load(answer)["instances"])


def _wait_ready(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    ends_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends_at and process.poll() is None:
        time.sleep(0.2)
        words = log_of(folder).split()
        url = next((word for word in words if word.startswith("http://")), None)
        if url is not None:
            try:
                with urllib.request.urlopen(f"{url}/ready", timeout=5):
                    return url
            except OSError:
                continue
    raise OSError("it did not become ready")

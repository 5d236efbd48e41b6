"""Runs one daemon and one load from start to end, for benchmarks that compare settings."""

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
        client = [sys.executable, "-m", "benchmarks.load", f"--url={url}", f"--json={report}"]
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
    folder.mkdir()
    command = [sys.executable, str(ROOT / "tdpipe.py"), "serve", str(model), "--port=0"]
    command += [f"--pipeline-parallel-size={num_stages}", "--device=cpu", "--num-threads=1"]
    command += [f"--data-dir={folder / 'data'}", *flags]
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        yield _wait_ready(folder, daemon)
    finally:
        daemon.terminate()
        try:
            daemon.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()


def log_of(folder: Path) -> str:
    """Return the daemon's log."""
    return (folder / "log").read_text(errors="replace")


def _wait_ready(folder: Path, daemon: "subprocess.Popen[bytes]") -> str:
    ends_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends_at and daemon.poll() is None:
        time.sleep(0.2)
        words = log_of(folder).split()
        url = next((word for word in words if word.startswith("http://")), None)
        if url is not None:
            try:
                with urllib.request.urlopen(f"{url}/ready", timeout=5):
                    return url
            except OSError:
                continue
    raise OSError("the daemon did not become ready")

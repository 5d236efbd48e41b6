"""A full disk: requests are answered, and each writer says in a line what it cannot write."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.daemon import Daemon
from tests.kernels import prepare_data_dir

MB = 1 << 20
SETTINGS = ("--dtype", "float32", "--device", "cpu", "--no-access-log", "--max-file-bytes", str(MB))
PROMPT = "Count to three in words.\n"
BODY = {"model": "tdpipe-demo", "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": BODY}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A disk of this size, mounted below the folder."""
    mounted = folder / "disk"
    mounted.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs"]
    done = subprocess.run(["mount", *options, str(mounted)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(disk: Path) -> Path:
    """Fill the disk with a file."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def complete(daemon: Daemon) -> int:
    """The status of a completion."""
    return httpx.post(f"{daemon.url}/v1/completions", json=BODY, timeout=60).status_code


def upload(daemon: Daemon, num_bytes: int = 0) -> httpx.Response:
    """Upload a file with one line, and so many bytes more."""
    content = json.dumps(LINE).encode() + b"\n" * (1 + num_bytes)
    return httpx.post(
        f"{daemon.url}/v1/files",
        files={"file": content},
        data={"purpose": "batch"},
        timeout=60,
    )


@pytest.mark.long
def test_requests_are_answered_while_everything_that_is_written_is_on_a_full_disk(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path, 48 * MB) as disk:
        path = disk / "tdpipe.log"
        arguments = [*SETTINGS, "--journal", str(disk / "journal"), "--trace", str(disk / "t.json")]
        arguments += ["--max-restarts", "100", "--log-file", str(path)]
        with Daemon(disk, *arguments) as daemon:
            stored = upload(daemon).json()["id"]
            made = {"input_file_id": stored, "endpoint": "/v1/completions"}
            made["completion_window"] = "24h"
            filler = fill(disk)
            assert [complete(daemon) for _ in range(3)] == [200] * 3
            assert upload(daemon, MB // 2).status_code == 500
            batch = httpx.post(f"{daemon.url}/v1/batches", json=made, timeout=60)
            assert batch.status_code in (200, 503)
            assert complete(daemon) == 200
            filler.unlink()
            assert upload(daemon).status_code == 200
            assert complete(daemon) == 200
            if batch.status_code == 503:
                batch = httpx.post(f"{daemon.url}/v1/batches", json=made, timeout=60)
            url = f"{daemon.url}/v1/batches/{batch.json()['id']}"
            daemon.wait_for(lambda: httpx.get(url).json()["status"] == "completed", 60)
            # A group of stages meets in a file: it begins when there is space again.
            filler = fill(disk)
            daemon.descendants()["stage"][0].kill()
            daemon.wait_for(lambda: daemon.health()["status"] != "ok")
            filler.unlink()
            assert complete(daemon) == 200
        lines = path.read_text(errors="replace") + daemon.log()
    assert "Traceback" not in lines


@pytest.mark.long
def test_what_cannot_be_written_is_named_once(tmp_path: Path) -> None:
    with small_disk(tmp_path, 32 * MB) as disk:
        arguments = [*SETTINGS, "--journal", str(disk / "journal"), "--trace", str(disk / "t.json")]
        arguments += ["--data-dir", str(prepare_data_dir(disk / "data"))]
        with Daemon(tmp_path, *arguments) as daemon:
            fill(disk)
            for _ in range(40):
                assert complete(daemon) == 200
            assert upload(daemon).status_code in (500, 503)
            daemon.wait_for(lambda: "the trace" in daemon.log())
            daemon.wait_for(lambda: "the journal" in daemon.log())
        lines = daemon.log().splitlines()
    journal = f"the journal {disk / 'journal'} ends here"
    trace = f"the trace {disk / 't.json'} ends here"
    for words in (trace, journal, "cannot store an upload"):
        assert sum(words in line for line in lines) == 1, daemon.log()
    assert any("No space left on device" in line and str(disk) in line for line in lines)
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("full", ["run", pytest.param("data", marks=pytest.mark.long)])
def test_a_start_on_a_full_disk_is_a_line_or_succeeds(full: str, tmp_path: Path) -> None:
    with small_disk(tmp_path, MB) as disk:
        arguments = {
            "run": ["--runtime-dir", str(disk / "run")],
            "data": ["--data-dir", str(prepare_data_dir(disk / "data"))],
        }
        fill(disk)
        daemon = Daemon(tmp_path, *SETTINGS, *arguments[full])
        daemon.start()
        began_at = time.monotonic()
        if full == "run":
            assert daemon.wait_end() == 1
            assert f"cannot write to {disk / 'run'}" in daemon.log().splitlines()[-1]
            assert time.monotonic() - began_at < 20
        else:
            with daemon_ending(daemon):
                daemon.wait_ready()
                assert complete(daemon) == 200
        assert "Traceback" not in daemon.log()


@contextmanager
def daemon_ending(daemon: Daemon) -> Iterator[None]:
    """End the daemon after the block."""
    try:
        yield
    finally:
        daemon.__exit__(None, None, None)


@pytest.mark.long
def test_a_disk_that_is_full_and_free_again_continues_the_log(tmp_path: Path) -> None:
    with small_disk(tmp_path, 4 * MB) as disk:
        path = disk / "tdpipe.log"
        with Daemon(tmp_path, *SETTINGS[:4], "--log-file", str(path)) as daemon:
            filler = fill(disk)
            for _ in range(50):
                assert complete(daemon) == 200
            size = path.stat().st_size
            filler.unlink()
            assert complete(daemon) == 200
            daemon.wait_for(lambda: path.stat().st_size > size)
        last = path.read_text().splitlines()[-1]
    assert last.endswith("stopped")
    assert "Traceback" not in path.name + daemon.log()

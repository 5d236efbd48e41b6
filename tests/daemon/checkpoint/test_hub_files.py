"""A hub id's files are fetched before anything starts, and its answers are those of the folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from daemon.checkpoint.hub_files import DOWNLOADER
from tests.checkpoints import make_checkpoint
from tests.end_to_end.daemon import ROOT
from tests.hub import COMMIT, FakeHub, fake_hub, files_of

MODEL = "org/model"
FETCH = """
import logging, sys, threading
from pathlib import Path
from configs.config import Config
from daemon.checkpoint import hub_files
from daemon.checkpoint.resolution import resolve
from daemon.start_error import StartError
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
{patch}
try:
    config = resolve(Config.of(model="org/model", {settings}), threading.Event())
except StartError as error:
    sys.exit(str(error))
print(config.model.model, *config.model.names)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("hub") / "model", "llama")


def fetch(
    hub: FakeHub, home: Path, *, settings: str = "", patch: str = "", **environment: str
) -> tuple[list[str], str]:
    """The lines that a fetching process prints, and its error."""
    result = subprocess.run(
        [sys.executable, "-c", FETCH.format(settings=settings, patch=patch)],
        cwd=ROOT,
        env=environment_for(hub, home) | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.stdout.splitlines(), result.stderr.strip()


def environment_for(hub: FakeHub, home: Path) -> dict[str, str]:
    names = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return os.environ | names


def snapshot(home: Path) -> Path:
    return home / "hub" / "models--org--model" / "snapshots" / COMMIT


def test_the_files_are_fetched_once_and_only_those_that_are_needed(
    checkpoint: Path, tmp_path: Path
) -> None:
    files = files_of(checkpoint)
    unused = ("consolidated.safetensors", "onnx/model.bin", "pytorch_model.bin", "README.md")
    with fake_hub(files | dict.fromkeys(unused, b"unused")) as hub:
        lines, problem = fetch(hub, tmp_path)
        assert not problem
        folder = snapshot(tmp_path)
        assert lines[-1] == f"{folder} {MODEL}"
        assert any(line.startswith(f"fetching {MODEL}, ") for line in lines)
        assert {name: (folder / name).read_bytes() for name in files_of(folder)} == files
        hub.requests.clear()
        lines, _ = fetch(hub, tmp_path)
        assert lines[-1] == f"{folder} {MODEL}"
        assert not any(request.startswith("GET /org/model/resolve") for request in hub.requests)
        hub.requests.clear()
        lines, _ = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert lines[-1] == f"{folder} {MODEL}"
        assert not hub.requests


def test_settings_that_do_not_fit_the_model_are_told_before_the_download(
    checkpoint: Path, tmp_path: Path
) -> None:
    with fake_hub(files_of(checkpoint)) as hub:
        _, problem = fetch(hub, tmp_path, settings="pipeline_parallel_size=64")
        assert "cannot be split into 64 stages" in problem
        assert not any("safetensors" in request for request in hub.requests)


def test_a_model_without_weights_is_named(checkpoint: Path, tmp_path: Path) -> None:
    files = {name: data for name, data in files_of(checkpoint).items() if "safetensors" not in name}
    with fake_hub(files) as hub:
        _, problem = fetch(hub, tmp_path)
    assert "has no weights: there is no *.safetensors" in problem


def test_a_full_disk_is_told_before_the_download(checkpoint: Path, tmp_path: Path) -> None:
    patch = "hub_files.shutil.disk_usage = lambda _: type('Usage', (), {'free': 1000})"
    with fake_hub(files_of(checkpoint)) as hub:
        _, problem = fetch(hub, tmp_path, patch=patch)
        assert "GB do not fit in" in problem
        assert "1e-06 GB are free; HF_HOME names another folder" in problem
        assert not any(request.startswith("GET /org/model/resolve/0") for request in hub.requests)


def test_a_download_that_stands_still_is_given_up_and_its_progress_is_told(
    checkpoint: Path, tmp_path: Path
) -> None:
    patch = "hub_files.STALL_TIMEOUT_S, hub_files.PROGRESS_S = 0.5, 0.2"
    with fake_hub(files_of(checkpoint)) as hub:
        hub.bytes_per_s = 100.0
        lines, problem = fetch(hub, tmp_path, patch=patch)
    assert "org/model cannot be fetched: nothing has come for 0.5 s" in problem
    assert any(line.startswith(f"{MODEL}: ") and " of " in line for line in lines)


def test_a_connection_that_breaks_is_made_again(checkpoint: Path, tmp_path: Path) -> None:
    files = files_of(checkpoint)
    with fake_hub(files) as hub:
        hub.num_cuts = 2
        _, problem = fetch(hub, tmp_path)
    assert not problem
    assert (snapshot(tmp_path) / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_download_that_breaks_again_and_again_is_told(checkpoint: Path, tmp_path: Path) -> None:
    with fake_hub(files_of(checkpoint)) as hub:
        hub.num_cuts = 1000
        _, problem = fetch(hub, tmp_path)
    assert "org/model cannot be fetched: peer closed connection" in problem


def test_a_signal_ends_the_download_and_a_second_start_goes_on(
    checkpoint: Path, tmp_path: Path
) -> None:
    with fake_hub(files_of(checkpoint)) as hub:
        hub.bytes_per_s = 10_000.0
        daemon = subprocess.Popen(
            [sys.executable, str(ROOT / "tdpipe.py"), "serve", MODEL, "--port", "0"],
            env=environment_for(hub, tmp_path),
            stderr=subprocess.PIPE,
        )
        parent = psutil.Process(daemon.pid)
        until = time.monotonic() + 60
        while not (children := parent.children()) and time.monotonic() < until:
            time.sleep(0.05)
        assert [DOWNLOADER in child.cmdline() for child in children] == [True]
        daemon.send_signal(signal.SIGTERM)
        _, log = daemon.communicate(timeout=30)
        assert daemon.returncode == 0, log
        psutil.wait_procs(children, timeout=10)
        assert not any(child.is_running() for child in children)
        hub.bytes_per_s = 0.0
        lines, problem = fetch(hub, tmp_path)
        assert not problem
        assert lines[-1] == f"{snapshot(tmp_path)} {MODEL}"
        assert json.loads((snapshot(tmp_path) / "config.json").read_bytes())

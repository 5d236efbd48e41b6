"""The files of a hub id, fetched to the hub's cache before any process starts.

Every process then loads them from a folder. Without this, each would ask the hub for file after
file, with retries for each of them, and a download would have to end before the start of the stages
times out.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from daemon.checkpoint.hub import CONFIG, OFFLINE, line_of, within
from daemon.checkpoint.weight_files import OTHERS, SUFFIXES
from daemon.processes import child_process
from daemon.processes.process_exits import describe
from daemon.start_error import StartError

DOWNLOADER = "daemon.checkpoint.hub_download"
# The hub is asked about each file, several at a time.
PLAN_TIMEOUT_S = 60.0
# The hub's library retries what fails, so a download that stands still for so long is given up.
STALL_TIMEOUT_S = 300.0
PROGRESS_S = 10.0
POLL_INTERVAL_S = 0.1
# Configs, tokenizers, templates, and code that --trust-remote-code admits.
TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")
# The same weights for other libraries.
UNUSED = (f"{OTHERS}*", *(f"*/*{suffix}" for suffix in SUFFIXES.values()))

log = logging.getLogger("tdpipe")


def fetch(
    model: str,
    revision: str | None,
    load_format: Literal["safetensors", "pt"],
    stop: threading.Event,
) -> Path | None:
    """The folder of a hub id's files in the hub's cache; those that it lacks are fetched.

    `hub.find_config` has found its config.json. None if `stop` was set meanwhile. Raises
    `StartError`.
    """
    from huggingface_hub import constants, snapshot_download

    wanted = {
        "repo_id": model,
        "revision": revision,
        "allow_patterns": [*TEXTS, f"*{SUFFIXES[load_format]}"],
        "ignore_patterns": [*UNUSED],
    }
    get: Callable[..., Any] = partial(snapshot_download, **wanted)
    try:
        if constants.is_offline_mode() or os.environ.get(OFFLINE) == "1":
            return Path(get(local_files_only=True))
        plan = within(PLAN_TIMEOUT_S, stop, lambda: get(dry_run=True))
        if plan is None:
            return None
        num_bytes = sum(file.file_size for file in plan if file.will_download)
        if num_bytes:
            _check_disk(num_bytes, Path(constants.HF_HUB_CACHE))
            return _download(model, wanted, num_bytes, stop)
        return next(Path(file.local_path).parent for file in plan if file.filename == CONFIG)
    except TimeoutError as error:
        raise _failure(model, f"no answer within {PLAN_TIMEOUT_S:g} s") from error
    except StartError:
        raise
    # Of the hub's library, of its HTTP client, or of the disk.
    except Exception as error:
        raise _failure(model, line_of(error)) from error


def _failure(model: str, reason: str) -> StartError:
    return StartError(f"model {model} cannot be fetched: {reason}")


def _check_disk(num_bytes: int, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if num_bytes > free:
        raise OSError(
            f"{_gigabytes(num_bytes)} do not fit in {cache}, where {_gigabytes(free)} are free; "
            "HF_HOME names another folder"
        )


def _download(
    model: str, wanted: dict[str, Any], num_bytes: int, stop: threading.Event
) -> Path | None:
    """Run the downloader, and log its progress; it is killed by `stop`, or if it stands still."""
    blobs = _blobs(model)
    before, began_at = _size(blobs), time.monotonic()
    log.info("fetching %s, %s, into %s", model, _gigabytes(num_bytes), blobs.parent)
    downloading = subprocess.Popen(
        [sys.executable, "-P", "-m", DOWNLOADER, json.dumps(wanted)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # see `child_process.start`
        env=child_process.environment_of_children(None),
    )
    done, changed_at, told_at = 0, began_at, began_at
    is_stalled = False
    try:
        while downloading.poll() is None and not is_stalled and not stop.wait(POLL_INTERVAL_S):
            now = time.monotonic()
            if now - told_at < PROGRESS_S:
                continue
            told_at = now
            if (size := _size(blobs) - before) != done:
                done, changed_at = size, now
            log.info("%s: %s of %s", model, _gigabytes(done), _gigabytes(num_bytes))
            is_stalled = now - changed_at > STALL_TIMEOUT_S
    finally:
        downloading.kill()
        printed, _ = downloading.communicate()
    if stop.is_set():
        return None
    last = printed.strip().rpartition("\n")[2]
    if is_stalled:
        raise _failure(model, f"nothing has come for {STALL_TIMEOUT_S:g} s")
    if downloading.returncode:
        raise _failure(model, last or f"the download {describe(downloading.returncode)}")
    log.info("fetched in %.0f s", time.monotonic() - began_at)
    return Path(last)


def _blobs(model: str) -> Path:
    """The folder of the model's files in the cache, complete and incomplete ones."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=model, repo_type="model")
    return Path(constants.HF_HUB_CACHE, name, "blobs")


def _size(folder: Path) -> int:
    num_bytes = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # it is complete now, and has another name
            num_bytes += path.stat().st_size
    return num_bytes


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB"

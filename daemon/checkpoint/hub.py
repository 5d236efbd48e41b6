"""The hub: finds out in seconds whether a hub id can be loaded, and why not.

It fetches config.json, and `hub_files` the other files. A model in the hub's cache is served
without the hub if that cannot be reached.
"""

import logging
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from daemon.start_error import StartError

CONFIG = "config.json"
# The time in which a name must have an address; a slower one is asked all the same.
NAME_TIMEOUT_S = 2.0
# The hub's library retries for longer, and says nothing meanwhile.
ANSWER_TIMEOUT_S = 20.0
_POLL_S = 0.05
OFFLINE = "HF_HUB_OFFLINE"

log = logging.getLogger("tdpipe")

Result = TypeVar("Result")


class _UnreachableError(Exception):
    """The hub has not answered; the message is the reason."""


def find_config(model: str, revision: str | None, stop: threading.Event) -> Path | None:
    """The config.json of a hub id in the hub's cache, fetched if it can be.

    If the hub cannot be reached and the cache has the file, the processes of the daemon will use
    the cache only. None if `stop` was set meanwhile. Raises `StartError`.
    """
    # A late import: most models are in folders.
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, CONFIG, revision=revision)
    except HFValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise StartError(f"model {model} is neither a folder nor a hub id: {reason}") from error
    cached = Path(found) if isinstance(found, str) else None
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    try:
        if constants.is_offline_mode():
            raise _UnreachableError(f"{OFFLINE} is set")
        return _ask(model, revision, host, stop)
    except _UnreachableError as error:
        if cached is None:
            raise StartError(
                f"model {model}: there is no such folder, it is not in the hub's cache "
                f"({constants.HF_HUB_CACHE}), and {host} cannot be asked for it: {error}"
            ) from error
        if not constants.is_offline_mode():
            log.warning("%s cannot be asked for %s: %s; using the cache", host, model, error)
            os.environ[OFFLINE] = "1"
        return cached


def _ask(model: str, revision: str | None, host: str, stop: threading.Event) -> Path | None:
    """Fetch the file. Raises `StartError` for what the hub refuses, and `_UnreachableError`."""
    from huggingface_hub import errors, hf_hub_download

    if not _has_proxy(host):  # which would look the name up
        _look_up(host, stop)
    log.info("asking %s for %s (for at most %g s)", host, model, ANSWER_TIMEOUT_S)
    try:
        path = within(
            ANSWER_TIMEOUT_S, stop, lambda: hf_hub_download(model, CONFIG, revision=revision)
        )
    except TimeoutError:
        raise _UnreachableError(f"no answer within {ANSWER_TIMEOUT_S:g} s") from None
    except errors.GatedRepoError as error:
        raise StartError(
            f"model {model} is gated: accept its terms on {host}, and set HF_TOKEN to a token of "
            "that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise StartError(
            f"model {model}: there is no such folder, and {host} has no such model, or only for "
            "those who may see it (HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise StartError(
            f"revision {revision}: {host} has no such branch, tag or commit of {model}"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise StartError(f"model {model} on {host} is not a checkpoint: no {CONFIG}") from error
    # Of the hub's library, of its HTTP client, or of the disk.
    except Exception as error:
        raise _UnreachableError(line_of(error)) from error
    return None if path is None else Path(path)


def _has_proxy(host: str) -> bool:
    given = urllib.request.getproxies().keys() & {"http", "https", "all"}
    return bool(given) and not urllib.request.proxy_bypass(host)


def _look_up(host: str, stop: threading.Event) -> None:
    """Raise `_UnreachableError` if the name is known to have no address."""
    try:
        within(NAME_TIMEOUT_S, stop, lambda: socket.getaddrinfo(host, 443))
    except TimeoutError:
        return
    except OSError as error:
        reason = error.strerror or str(error)
        raise _UnreachableError(f"its name has no address ({reason}); is there a network?") from (
            error
        )


def line_of(error: Exception) -> str:
    """The first line of its message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def within(timeout_s: float, stop: threading.Event, work: Callable[[], Result]) -> Result | None:
    """The result of `work`, in a thread that is left behind after a `TimeoutError`, or by `stop`.

    Raises what `work` raises.
    """
    results: list[Result] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    deadline = time.monotonic() + timeout_s
    while thread.is_alive() and not stop.is_set() and time.monotonic() < deadline:
        thread.join(_POLL_S)
    if failures:
        raise failures[0]
    if not results and not stop.is_set():
        raise TimeoutError
    return results[0] if results else None

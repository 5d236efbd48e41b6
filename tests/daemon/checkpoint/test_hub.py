"""The hub: what it refuses, and that it cannot be reached, is told in one line and in time."""

import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors

from daemon.checkpoint import hub
from daemon.checkpoint.hub import find_config
from daemon.start_error import StartError
from tests.end_to_end.daemon import ROOT
from tests.hub import fake_hub

NEVER = threading.Event()
MODEL = "org/model"


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the cache, and a name that has an address."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, as it is in the cache."""
    path = tmp_path / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # it is restored
    return path


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the hub's library raise this."""

    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def refused(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    """An error of the library about an answer of the hub."""
    request = httpx2.Request("HEAD", "https://huggingface.co")
    return kind("refused", response=httpx2.Response(404, request=request))


def refusal(revision: str | None = None) -> str:
    """The line about a model that cannot be had."""
    with pytest.raises(StartError) as found:
        find_config(MODEL, revision, NEVER)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def download(*arguments: object, revision: str | None) -> str:
        asked.append((*arguments, revision))
        return str(tmp_path / "config.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_config(MODEL, "v1", NEVER) == tmp_path / "config.json"
    assert asked == [(MODEL, "config.json", "v1")]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.RepositoryNotFoundError, "has no such model, or only for those who may see it"),
        (errors.GatedRepoError, "is gated: accept its terms on huggingface.co, and set HF_TOKEN"),
        (errors.RevisionNotFoundError, "revision v9: huggingface.co has no such branch"),
        (errors.RemoteEntryNotFoundError, "is not a checkpoint: no config.json"),
        (errors.HfHubHTTPError, "cannot be asked for it: refused"),
    ],
)
def test_what_the_hub_refuses_is_told_with_the_remedy(
    kind: type[errors.HfHubHTTPError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, refused(kind))
    assert words in refusal("v9")
    assert MODEL in refusal("v9")


def test_an_id_that_cannot_be_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object, **__: object) -> None:
        raise errors.HFValidationError("Repo id must use alphanumeric chars: 'a b'.")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
    with pytest.raises(
        StartError, match="model a b is neither a folder nor a hub id: Repo id must"
    ):
        find_config("a b", None, NEVER)


def test_a_name_without_an_address_ends_the_start_without_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look_up(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)  # it is not called
    line = refusal()
    assert f"model {MODEL}: there is no such folder, it is not in the hub's cache" in line
    assert "its name has no address (Name or service not known); is there a network?" in line


def test_a_proxy_looks_the_name_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    path = str(tmp_path / "config.json")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: path)
    assert find_config(MODEL, None, NEVER) == Path(path)


def test_a_cached_model_is_served_offline_if_the_hub_cannot_be_reached(
    cached: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_with(monkeypatch, OSError("no route to host"))
    with caplog.at_level(logging.WARNING):
        assert find_config(MODEL, None, NEVER) == cached
    assert "cannot be asked for org/model: no route to host; using the cache" in caplog.text
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_hub_that_does_not_answer_is_waited_for_with_a_limit_that_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: release.wait(60))
    monkeypatch.setattr(hub, "ANSWER_TIMEOUT_S", 0.2)
    with caplog.at_level(logging.INFO):
        assert "no answer within 0.2 s" in refusal()
    release.set()
    assert "asking huggingface.co for org/model (for at most 0.2 s)" in caplog.text


def test_a_signal_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    release, stop = threading.Event(), threading.Event()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: release.wait(60))
    threading.Timer(0.2, stop.set).start()
    assert find_config(MODEL, None, stop) is None
    release.set()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("org/other", "there is no such folder, and 127.0.0.1 has no such model"),
        (MODEL, "6 layers cannot be split into 7 stages"),
    ],
)
def test_the_library_of_the_hub_behaves_as_expected(model: str, words: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tdpipe.py"), "serve", model, "-pp", "7", "--port", "0"]
    with fake_hub({"config.json": b'{"num_hidden_layers": 6}'}) as found:
        environment = os.environ | {"HF_ENDPOINT": found.url, "HF_HOME": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]

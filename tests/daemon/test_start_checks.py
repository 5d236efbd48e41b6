"""Start checks: each setting that cannot work on this machine is named before anything starts."""

import errno
import os
import socket
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from configs.config import Config
from configs.schema.runtime import data_dir
from daemon import start_checks
from daemon.start_checks import check_start
from daemon.start_error import StartError

GIB = 1 << 30


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without GPUs; a file in this folder is a device."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(start_checks, "_DEV", tmp_path / "dev")
    (tmp_path / "dev").mkdir()
    return tmp_path / "dev"


def check(*, serves: bool = True, **settings: Any) -> None:
    """Check a daemon with these settings on a free port."""
    check_start(Config.of(**{"port": 0, **settings}), serves=serves)


def refusal(**settings: Any) -> str:
    """The line about settings that cannot work."""
    with pytest.raises(StartError) as found:
        check(**settings)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_the_defaults_can_work() -> None:
    check()


def test_a_port_in_use_is_refused_where_a_server_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is already in use" in refusal(port=port)
        check(port=port, serves=False)
        check(port=port, uds="socket")
        secret = {"cluster_secret": "x" * 16}
        check(port=port, nnodes=2, node_rank=1, headless=True, **secret)


@pytest.mark.parametrize(
    "name", ["chat_template", "profile", "ssl_certfile", "ssl_keyfile", "ssl_ca_certs"]
)
def test_a_file_that_cannot_be_read_is_named_with_its_setting(name: str, tmp_path: Path) -> None:
    assert refusal(**{name: tmp_path / "x"}) == f"{name}: {tmp_path / 'x'} does not exist"
    assert refusal(**{name: tmp_path}) == f"{name}: {tmp_path} is a folder, not a file"
    (tmp_path / "x").touch()
    check(**{name: tmp_path / "x"})


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"uds": "/nowhere/x"}, "uds: cannot listen on /nowhere/x, there is no folder /nowhere"),
        ({"journal": "/nowhere/x"}, "journal: cannot write /nowhere/x, there is no folder"),
        ({"trace": "/nowhere/x"}, "trace: cannot write /nowhere/x, there is no folder /nowhere"),
        ({"tokenizer": "/nowhere/x"}, "tokenizer: there is no folder /nowhere/x"),
        ({"predictor": "histogramm"}, "predictor: there is no folder histogramm; other values"),
        ({"generation_config": "/nowhere"}, "generation_config: /nowhere/generation_config.json"),
        ({"data_dir": "/etc/hostname/x"}, "data_dir: cannot write to /etc/hostname/x: Not a dir"),
    ],
)
def test_a_path_that_is_not_there_is_named_with_its_setting(
    settings: dict[str, Any], line: str
) -> None:
    assert refusal(**settings).startswith(line)


def test_a_tokenizer_may_be_on_the_hub() -> None:
    check(tokenizer="some/tokenizer")


@pytest.mark.parametrize(("number", "is_refused"), [(errno.EROFS, True), (errno.ENOSPC, False)])
def test_a_full_disk_is_no_reason_not_to_serve(
    number: int, *, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    if is_refused:
        assert refusal(data_dir=tmp_path).endswith("Read-only file system")
    else:
        check(data_dir=tmp_path)
    check(data_dir=data_dir())  # without the default folder, a daemon keeps nothing


def test_cuda_needs_a_gpu_that_is_visible_and_a_torch_that_can_use_it(
    devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "device cuda: this machine has no GPU" in refusal(device="cuda")
    check(device="auto")
    (devices / "nvidia0").touch()
    monkeypatch.setattr(metadata, "version", lambda _: "2.13.0+cpu")
    assert "the installed torch 2.13.0+cpu is a build without CUDA" in refusal(device="cuda")
    monkeypatch.setattr(metadata, "version", lambda _: "2.13.0")
    check(device="cuda")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert f"CUDA_VISIBLE_DEVICES is {hidden!r}, which hides all" in refusal(device="cuda")


def test_the_caches_of_all_stages_on_this_host_fit_its_memory(
    devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_checks, "total_bytes", lambda: 8 * GIB)
    check(kv_cache_memory_bytes=4 * GIB)  # two stages
    line = refusal(kv_cache_memory_bytes=4 * GIB + 1)
    assert line.startswith(f"kv_cache_memory_bytes {4 * GIB + 1} for each of 2 stages is more than")
    assert line.endswith(f"{8 * GIB} bytes; at most {4 * GIB} are possible")
    assert "at most 8589934592" in refusal(kv_cache_memory_bytes=9 * GIB, pipeline_parallel_size=1)
    check(
        kv_cache_memory_bytes=5 * GIB, nnodes=2, node_rank=1, headless=True, cluster_secret="x" * 16
    )
    (devices / "nvidia0").touch()
    check(kv_cache_memory_bytes=9 * GIB)  # of GPUs, each stage finds out
    assert refusal(kv_cache_memory_bytes=9 * GIB, device="cpu")

"""The resource limits: a shortage is one line with its remedy."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.config import Config
from daemon.host import resource_limits
from tests.end_to_end.daemon import ROOT


def found(config: Config, words: str) -> list[str]:
    """The shortages with these words in them."""
    return [line for line in resource_limits.shortages(config) if words in line]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """Free bytes by folder; others have plenty."""
    free: dict[Path, int] = {}

    def usage(folder: Path) -> object:
        return shutil._ntuple_diskusage(1 << 50, 0, free.get(folder, 1 << 50))  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return free


def test_open_files_are_raised_to_what_the_system_grants_and_inherited() -> None:
    script = """if True:
    import resource, subprocess, sys
    from daemon.host import resource_limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
    resource_limits.raise_open_files()
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    subprocess.run([sys.executable, "-c", code])
    """
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert run.stdout == "(128, 128)\n"


@pytest.mark.parametrize(("granted", "is_reported"), [(100, True), (1535, True), (1536, False)])
def test_too_few_open_files_for_the_clients_are_reported(
    granted: int, is_reported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.of(max_num_queued_reqs=1024, max_num_seqs=256)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (granted, granted))
    lines = found(config, "ulimit -Hn 1536")
    assert bool(lines) is is_reported
    for line in lines:
        assert f"at most {granted} files" in line
        assert "\n" not in line


def test_no_limit_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert not found(Config(), "ulimit")
    resource_limits.raise_open_files()  # and is left as it is


@pytest.mark.parametrize(
    ("settings", "mib", "is_reported"),
    [
        ({"pipeline_parallel_size": 4}, 64, True),
        ({"pipeline_parallel_size": 4}, 256, False),
        ({"pipeline_parallel_size": 1}, 1, False),
        ({"pipeline_parallel_size": 4, "device": "cpu"}, 1, False),
    ],
)
def test_shared_memory_is_looked_at_where_nccl_needs_it(
    settings: dict[str, object],
    mib: int,
    is_reported: bool,
    disk: dict[Path, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource_limits, "NVIDIA_DRIVER", tmp_path)
    monkeypatch.setattr(resource_limits, "SHARED_MEMORY", tmp_path)
    disk[tmp_path] = mib << 20
    assert bool(found(Config.of(**settings), "--shm-size")) is is_reported


def test_a_data_dir_that_is_not_there_yet_is_measured_where_it_will_be(
    disk: dict[Path, int], tmp_path: Path
) -> None:
    config = Config.of(data_dir=tmp_path / "not" / "yet", max_file_bytes=1 << 30)
    assert not found(config, "data_dir")
    disk[tmp_path] = 10 << 20
    (line,) = found(config, "data_dir")
    assert "10 MiB free" in line
    assert "1024 MiB" in line


def test_a_folder_that_cannot_be_looked_at_is_no_reason_not_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> object:
        raise PermissionError

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    assert not found(Config.of(data_dir=tmp_path), "data_dir")


def test_this_machine_reports_its_limits() -> None:
    assert isinstance(list(resource_limits.shortages(Config.of(data_dir=Path(os.sep)))), list)

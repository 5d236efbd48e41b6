"""The memory of the host: a container's limit counts, and what the kernel can free is free."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from daemon.host import host_memory
from daemon.host.host_memory import available_bytes, total_bytes

HOST_TOTAL, HOST_FREE = 64_000, 50_000


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the control groups of a host."""
    memory = SimpleNamespace(total=HOST_TOTAL, available=HOST_FREE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(host_memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "_OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def write_group(folder: Path, limit: str, used: int = 0, cached: int = 0) -> None:
    """A group of version 2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\n")


def test_without_control_groups_it_is_the_host_s(groups: Path) -> None:
    assert not list(groups.iterdir())
    assert (total_bytes(), available_bytes()) == (HOST_TOTAL, HOST_FREE)


def test_a_container_s_limit_counts_without_its_cached_files(groups: Path) -> None:
    write_group(groups, "8000", used=3000, cached=1000)
    assert (total_bytes(), available_bytes()) == (8000, 6000)


def test_a_group_without_a_limit_has_the_host_s(groups: Path) -> None:
    write_group(groups, "max", used=3000)
    assert (total_bytes(), available_bytes()) == (HOST_TOTAL, HOST_FREE)


def test_the_smallest_limit_of_the_groups_around_counts(groups: Path) -> None:
    (groups.parent / "own").write_text("0::/a/b\n")
    write_group(groups / "a", "4000", used=500)
    write_group(groups / "a" / "b", "9000", used=400)
    assert (total_bytes(), available_bytes()) == (4000, 3500)


def test_version_1_of_control_groups_counts(groups: Path) -> None:
    (groups.parent / "own").write_text("9:cpu:/a\n4:memory:/a\n")
    folder = groups / "memory" / "a"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("7000\n")
    (folder / "memory.usage_in_bytes").write_text("2000\n")
    (folder / "memory.stat").write_text("cache 900\ntotal_inactive_file 500\n")
    assert (total_bytes(), available_bytes()) == (7000, 5500)


def test_more_in_use_than_allowed_leaves_nothing(groups: Path) -> None:
    write_group(groups, "1000", used=1200)
    assert available_bytes() == 0

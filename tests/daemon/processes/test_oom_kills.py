"""OOM kills: only one that was counted lately explains a SIGKILL."""

from pathlib import Path

import pytest

from daemon.processes import oom_kills
from daemon.processes.oom_kills import RECENT_S, OomKills, count_oom_kills


class Kernel:
    """A count and a clock."""

    def __init__(self) -> None:
        self.num_kills, self.now = 7, 100.0

    def watch(self) -> OomKills:
        """A watch that begins now."""
        return OomKills(lambda: self.num_kills, lambda: self.now)


def test_kills_before_the_start_explain_nothing() -> None:
    assert not Kernel().watch().are_recent()


def test_a_kill_explains_an_exit_for_a_while() -> None:
    kernel = Kernel()
    kills = kernel.watch()
    kernel.num_kills += 1
    assert kills.are_recent()
    kernel.now += RECENT_S - 0.1
    assert kills.are_recent()
    kernel.now += 0.2
    assert not kills.are_recent()


def test_a_kill_that_a_refresh_has_seen_grows_old() -> None:
    kernel = Kernel()
    kills = kernel.watch()
    kernel.num_kills += 1
    kills.refresh()
    kernel.now += RECENT_S + 0.1
    assert not kills.are_recent()


def test_the_kernel_is_asked_at_most_once_a_second() -> None:
    kernel, asked = Kernel(), []
    kills = OomKills(lambda: asked.append(1) or 0, lambda: kernel.now)
    for _ in range(100):
        kills.refresh()
        kernel.now += 0.05
    assert len(asked) == 1 + 5


@pytest.mark.parametrize(
    ("cgroup", "file", "text"),
    [
        ("0::/a/b", "a/b/memory.events", "low 0\noom 3\noom_kill 2\n"),
        ("0::/elsewhere", "memory.events", "oom_kill 2\n"),  # a container's own root
        ("9:x:/\n4:memory:/a", "memory/a/memory.oom_control", "under_oom 0\noom_kill 2\n"),
    ],
)
def test_the_count_is_that_of_the_own_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, file: str, text: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    monkeypatch.setattr(oom_kills, "_CGROUPS", tmp_path)
    monkeypatch.setattr(oom_kills, "_OWN_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(cgroup + "\n")
    assert count_oom_kills() == 2


def test_without_a_control_group_the_count_is_that_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oom_kills, "_CGROUPS", tmp_path)
    assert count_oom_kills() >= 0
    monkeypatch.setattr(oom_kills, "_HOST", tmp_path / "missing")
    assert count_oom_kills() == 0

"""The memory of this host, or of the container in which this process runs."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# The limit and the use, in both versions of control groups. Without a limit, version 2 has the word
# `max`, and version 1 a number above any memory.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True, slots=True)
class _Group:
    """The limit of a control group, and what of it is in use and cannot be reclaimed, in bytes."""

    limit: int
    in_use: int


def total_bytes() -> int:
    """All memory that the processes of this container may use together."""
    return min((psutil.virtual_memory().total, *(group.limit for group in _groups())))


def available_bytes() -> int:
    """The part of it that is free, or that the kernel can free."""
    free = (group.limit - group.in_use for group in _groups())
    return max(0, min((psutil.virtual_memory().available, *free)))


def _groups() -> Iterator[_Group]:
    for folder in dict.fromkeys(_folders()):
        for limit, use, cached in _FILES:
            with suppress(OSError, ValueError):
                stat = dict(
                    line.split() for line in (folder / "memory.stat").read_text().splitlines()
                )
                in_use = int((folder / use).read_text()) - int(stat.get(cached, 0))
                yield _Group(int((folder / limit).read_text()), in_use)


def _folders() -> Iterator[Path]:
    """The control group of this process and those above it, each of which may have a limit.

    A container may see its own group as the root, whatever the path in /proc says.
    """
    yield from (_CGROUPS, _CGROUPS / "memory")
    with suppress(OSError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers in ("", "memory"):
                own = _CGROUPS / controllers / name.lstrip("/")
                yield from (own, *(up for up in own.parents if up.is_relative_to(_CGROUPS)))

"""Processes by their command lines, which may be titles (`daemon.processes.process_title`)."""

from collections.abc import Iterable

import psutil


def words_of(process: psutil.Process) -> list[str]:
    """The words of a command line or title."""
    return split_words(process.cmdline())


def split_words(cmdline: Iterable[str] | None) -> list[str]:
    """The words of what psutil has read: a title is one word with spaces, or is padded."""
    return " ".join(cmdline or ()).split()

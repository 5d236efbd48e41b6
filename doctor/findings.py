"""Findings: what a check has found, in one line each."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`about` is a word or two; with an `error` the daemon would not work."""

    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:8} {self.about:12} {self.text}"


def ok(about: str, text: str) -> Finding:
    """A check that has passed."""
    return Finding("ok", about, text)


def warning(about: str, text: str) -> Finding:
    """Something that may be meant, or costs performance."""
    return Finding("warning", about, text)


def error(about: str, text: str) -> Finding:
    """Something without which the daemon does not work."""
    return Finding("error", about, text)

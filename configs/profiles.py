"""Profiles: how long a model's forward takes over n tokens, read from and written to CSV.

The format is TD-Pipe's: a header `Total Length,Execute Time`, then tokens and milliseconds of a
forward through the whole model. Lines that begin with # are notes.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

HEADER = ("Total Length", "Execute Time")


class ProfileError(ValueError):
    """The file is no profile; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of a forward through the whole model over `num_tokens` tokens, ascending."""

    num_tokens: tuple[int, ...]
    seconds: tuple[float, ...]


def read_profile(path: Path) -> Profile:
    """The profile in `path`. Raises `ProfileError`, which names the line that is wrong."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(i, line) for i, line in enumerate(file, start=1) if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"cannot read the profile {path}: {error}") from error
    numbers = [number for number, _ in lines]
    try:
        rows = list(zip(numbers, csv.reader(line for _, line in lines), strict=True))
    except (ValueError, csv.Error) as error:
        raise ProfileError(f"{path} is no CSV: a quote is not closed, or a cell endless") from error
    if not rows or tuple(cell.strip() for cell in rows[0][1]) != HEADER:
        raise ProfileError(f"{path} is no profile: its first line must be {','.join(HEADER)}")
    times: dict[int, float] = {}
    for number, row in rows[1:]:
        if not row:
            continue
        num_tokens, seconds = _read_row(path, number, row)
        if num_tokens in times:
            raise ProfileError(f"{path}, line {number}: {num_tokens} tokens a second time")
        times[num_tokens] = seconds
    if not times:
        raise ProfileError(f"{path} is an empty profile")
    return Profile(tuple(sorted(times)), tuple(times[n] for n in sorted(times)))


def write_profile(profile: Profile, path: Path, notes: str = "") -> None:
    """Write `profile` to `path` with `notes` above it. Raises `OSError`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in notes.splitlines())
        writer = csv.writer(file)
        writer.writerow(HEADER)
        pairs = zip(profile.num_tokens, profile.seconds, strict=True)
        writer.writerows((n, round(seconds * 1000, 6)) for n, seconds in pairs)


def _read_row(path: Path, number: int, row: list[str]) -> tuple[int, float]:
    try:
        num_tokens, milliseconds = int(row[0]), float(row[1])
    except (ValueError, IndexError) as error:
        raise ProfileError(f"{path}, line {number}: not tokens and milliseconds") from error
    if num_tokens < 1 or not (math.isfinite(milliseconds) and milliseconds > 0):
        raise ProfileError(f"{path}, line {number}: tokens and milliseconds must be above 0")
    return num_tokens, milliseconds / 1000

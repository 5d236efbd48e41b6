"""Profiles: how long a model's forward takes over n tokens, read from and written to CSV.

Two formats. TD-Pipe's has a header `Total Length,Execute Time`, then tokens and milliseconds of a
forward through the whole model; lines that begin with # are notes. The rich one, which
`tdpipe profile` writes, has a line for each measured step of each stage; its notes `# key: value`
at the head say what was measured.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

HEADER = ("Total Length", "Execute Time")
STEP_COLUMNS = ("stage", "kind", "rows", "tokens", "kv_tokens", "pairs", "seconds", "repeats")

# Plausible figures of a step: from a launch of a kernel to an hour.
MOST_TOKENS, LEAST_S, MOST_S = 10**7, 1e-8, 3600.0

Kind = Literal["prefill", "decode", "mixed"]


class ProfileError(ValueError):
    """The file is not a valid profile; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of a forward through the whole model over `num_tokens` tokens, ascending."""

    num_tokens: tuple[int, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """A step and the median of the seconds that `repeats` of it took on one stage.

    `tokens` are fed in `rows` rows, after `kv_tokens` in the cache; `pairs` are those of a new
    token with itself or one before it, in rows of several new tokens.
    """

    kind: Kind
    rows: int
    tokens: int
    kv_tokens: int
    pairs: int
    seconds: float
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class StepTable:
    """The measured steps of each stage, and the notes that say what was measured."""

    notes: Mapping[str, str]
    stages: tuple[tuple[MeasuredStep, ...], ...]


def is_step_table(path: Path) -> bool:
    """Whether the file's first line that is no note names the rich table's columns."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if not line.startswith("#")), "")
    except (OSError, UnicodeDecodeError):
        return False
    return tuple(cell.strip() for cell in first.split(",")) == STEP_COLUMNS


def read_steps(path: Path) -> StepTable:
    """The rich table in `path`. Raises `ProfileError`, which names the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"cannot read the profile {path}: {error}") from error
    notes = dict(_read_notes(lines))
    rows = [(i, line) for i, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not rows:
        raise ProfileError(f"{path} is an empty profile")
    if tuple(cell.strip() for cell in rows[0][1].split(",")) != STEP_COLUMNS:
        columns = ",".join(STEP_COLUMNS)
        raise ProfileError(f"{path}, line {rows[0][0]}: the columns must be {columns}")
    stages: dict[int, list[MeasuredStep]] = {}
    for number, line in rows[1:]:
        stage, step = _read_step(path, number, line.split(","))
        stages.setdefault(stage, []).append(step)
    num_stages = notes.get("stages", "")
    count = int(num_stages) if num_stages.isdecimal() else max(stages, default=0) + 1
    for stage in range(count):
        if stage not in stages:
            raise ProfileError(f"{path} has no steps of stage {stage}")
    if len(stages) > count:
        raise ProfileError(f"{path} has steps of stage {max(stages)}, but {count} stages")
    return StepTable(notes, tuple(tuple(stages[stage]) for stage in range(count)))


def head_of_steps(notes: Mapping[str, str]) -> str:
    """The rich table's first lines: the notes, then the columns."""
    lines = [f"# {key}: {' '.join(value.split())}" for key, value in notes.items()]
    return "\n".join([*lines, ",".join(STEP_COLUMNS), ""])


def line_of_step(stage: int, step: MeasuredStep) -> str:
    """One line of the rich table."""
    sizes = f"{step.rows},{step.tokens},{step.kv_tokens},{step.pairs}"
    return f"{stage},{step.kind},{sizes},{step.seconds:.9f},{step.repeats}\n"


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
    if num_tokens > MOST_TOKENS or not LEAST_S <= milliseconds / 1000 <= MOST_S:
        raise ProfileError(
            f"{path}, line {number}: {row[0]} tokens in {row[1]} ms cannot be: up to "
            f"{MOST_TOKENS:g} tokens and {1000 * LEAST_S:g} to {1000 * MOST_S:g} ms are plausible"
        )
    return num_tokens, milliseconds / 1000


def _read_notes(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, colon, value = line.removeprefix("#").partition(":")
        if line.startswith("#") and colon:
            yield key.strip(), value.strip()


def _read_step(path: Path, number: int, cells: Sequence[str]) -> tuple[int, MeasuredStep]:
    try:
        stage, rows, tokens, kv_tokens, pairs, repeats = (int(cells[i]) for i in (0, 2, 3, 4, 5, 7))
        seconds, kind = float(cells[6]), cells[1].strip()
    except (ValueError, IndexError) as error:
        raise ProfileError(f"{path}, line {number}: not {','.join(STEP_COLUMNS)}") from error
    if len(cells) != len(STEP_COLUMNS) or kind not in get_args(Kind):
        raise ProfileError(f"{path}, line {number}: not {','.join(STEP_COLUMNS)}")
    if min(stage, kv_tokens, pairs) < 0 or min(rows, repeats) < 1 or tokens < rows:
        raise ProfileError(f"{path}, line {number}: a number is too small")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ProfileError(f"{path}, line {number}: seconds must be above 0")
    if max(stage, rows, tokens) > MOST_TOKENS or not LEAST_S <= seconds <= MOST_S:
        raise ProfileError(
            f"{path}, line {number}: {tokens} tokens in {seconds:g} s cannot be: up to "
            f"{MOST_TOKENS:g} tokens and {LEAST_S:g} to {MOST_S:g} s are plausible"
        )
    return stage, MeasuredStep(cast(Kind, kind), rows, tokens, kv_tokens, pairs, seconds, repeats)

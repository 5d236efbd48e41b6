"""Output files: a command replaces a file only if the same command wrote it, or if it is told to.

Commands name some of their files themselves (`tdpipe profile --out node.csv` also writes node.png),
and a flag may name a file that somebody needs. So every command puts a mark into its files, and
checks before it works for minutes that the files which it would replace have its mark.
"""

from collections.abc import Mapping
from pathlib import Path

# The key of the metadata that contains the mark, for each suffix of a picture.
_PICTURE_KEYS = {".png": "Software", ".svg": "Creator", ".pdf": "Creator"}
_SEARCHED_BYTES = 1 << 14


class OutputFileError(OSError):
    """An output file cannot be written, or would replace another file; one line for the user."""


def check_outputs(
    marks: Mapping[Path, str],
    *,
    overwrite: bool = False,
    advice: str = "choose another path, or --overwrite",
) -> None:
    """Check that each file can be written: `marks` has the mark of each file's command.

    With `overwrite`, any file may be replaced. Raises `OSError`, `OutputFileError` in particular.
    """
    if len({path.absolute() for path in marks}) < len(marks):
        raise OutputFileError(f"two output files have the same path {next(iter(marks))}")
    for path, mark in marks.items():
        was_there = path.exists()
        if was_there and not (path.is_file() or path.is_dir()):
            continue  # a device or a pipe
        path.open("ab").close()
        if not was_there:
            path.unlink()
        elif not overwrite and not has_mark(path, mark):
            raise OutputFileError(f"{path} exists and another command wrote it: {advice}")


def has_mark(path: Path, mark: str) -> bool:
    """Whether an existing file contains the mark near its begin or end, or is empty."""
    with path.open("rb") as file:
        head = file.read(_SEARCHED_BYTES)
        file.seek(max(0, path.stat().st_size - _SEARCHED_BYTES))
        tail = file.read(_SEARCHED_BYTES)
    return not head or mark.encode() in head or mark.encode() in tail


def picture_metadata(path: Path, mark: str) -> dict[str, str]:
    """The metadata that marks a picture, for matplotlib's `savefig`."""
    return {_PICTURE_KEYS[path.suffix]: mark}

"""`tdpipe replay FILE`: pass the events of a journal to the scheduler and compare decisions."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.trace.journal import JournalError, replay


def main(argv: Sequence[str]) -> int:
    """Return 0 if all decisions are identical; otherwise 1, after printing the first difference."""
    parser = argparse.ArgumentParser("tdpipe replay", description=__doc__)
    parser.add_argument("journal", type=Path, help="file written by `tdpipe serve --journal`")
    path: Path = parser.parse_args(argv).journal
    try:
        count = replay(path)
    except (JournalError, OSError) as error:
        sys.stderr.write(f"tdpipe: error: {error}\n")
        return 1
    sys.stdout.write(f"{path}: {count} events, all decisions identical\n")
    return 0

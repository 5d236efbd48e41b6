"""`tdpipe replay FILE`: hand a journal's events to the scheduler again and compare."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.trace.journal import JournalError, replay


def main(argv: Sequence[str]) -> int:
    """0 when every decision came out the same, 1 with the first that did not."""
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

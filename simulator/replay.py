"""`tdpipe replay FILE`: pass the events of a journal to the decision maker, and compare decisions.

The journal is an engine's or a router's; its head tells which.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.trace import journal as engine_journal
from router import journal as router_journal
from router.decisions.core import RouterCore
from wire.journal_file import JournalError


def main(argv: Sequence[str]) -> int:
    """Return 0 if all decisions are identical; otherwise 1, after printing the first difference."""
    parser = argparse.ArgumentParser("tdpipe replay", description=__doc__)
    parser.add_argument(
        "journal", type=Path, help="file written by the --journal of `tdpipe serve` or `route`"
    )
    path: Path = parser.parse_args(argv).journal
    try:
        if router_journal.is_routers(path):
            count = router_journal.replay(path, RouterCore)
        else:
            count = engine_journal.replay(path)
    except (JournalError, OSError) as error:
        sys.stderr.write(f"tdpipe: error: {error}\n")
        return 1
    sys.stdout.write(f"{path}: {count} events, all decisions identical\n")
    return 0

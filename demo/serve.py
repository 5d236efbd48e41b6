"""`make serve`: the daemon with the demo model and its own length predictor.

    python -m demo.serve [MODEL] [--flags]

If the arguments, the environment or the YAML file name another model or predictor, this is the same
as `tdpipe serve` with these arguments, in any order.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from configs import loader
from configs.commands import SERVE
from daemon import supervisor
from daemon.version import VERSION

PREDICTOR = Path(__file__).resolve().parent / "predictor"


def main(argv: Sequence[str]) -> int:
    """Run the daemon; returns the exit code."""
    more = [] if names(argv, "model", "predictor") else ["--predictor", str(PREDICTOR)]
    return supervisor.main([*argv, *more])


def names(argv: Sequence[str], *settings: str) -> bool:
    """Whether one of the settings is given somewhere, or the arguments are wrong."""
    try:
        given = loader.given(SERVE, argv, version=VERSION)
    except loader.ConfigError:
        return True  # the daemon reports it
    return any(setting in given for setting in settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

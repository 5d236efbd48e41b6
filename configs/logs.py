"""Logs: one line format for every process of the daemon, on standard error."""

import logging
import sys


def set_up(process: str, level: str) -> logging.Logger:
    """Send this process's log to standard error under its own name; returns its logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(levelname)s %(asctime)s [{process}] %(message)s", "%m-%d %H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger = logging.getLogger("tdpipe")
    logger.setLevel(level.upper())
    return logger

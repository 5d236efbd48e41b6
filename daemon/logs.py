"""Logs: one line format for every process of the daemon, on standard error.

Which may be a file: see `daemon.log_file`.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal, TextIO

from configs.front_door import LogConfig

# What a line of the access log tells beside its message, as attributes of its record.
FIELDS = "fields"


def set_up(process: str, config: LogConfig, terminal: TextIO | None = None) -> logging.Logger:
    """Send this process's log to standard error under its own name; returns its logger.

    Errors go to the `terminal` as well: where the log is in a file, nobody may look there.
    """
    formatter = _formatter(process, config.log_format)
    handlers = [logging.StreamHandler(sys.stderr)]
    if terminal is not None:
        handlers.append(_Terminal(terminal))
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)
    logger = logging.getLogger("tdpipe")
    logger.setLevel(config.log_level.upper())
    if config.log_format == "json":
        _catch_all(logger)
    return logger


def fields(**values: object) -> Mapping[str, object]:
    """What a line tells beside its message: `logger.info(..., extra=fields(status=200))`.

    In JSON each is a key of its own; in text the message has to hold what matters.
    """
    return {FIELDS: values}


class JsonFormatter(logging.Formatter):
    """A line is an object: time (UTC), level, process, message; exception and fields if any."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, FIELDS, {}), default=str)


class _Terminal(logging.StreamHandler[TextIO]):
    """Errors for whoever has started the daemon."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setLevel(logging.ERROR)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """It may have been closed; the file has the line."""


def _catch_all(logger: logging.Logger) -> None:
    """Let nothing but objects come from this process and its children.

    Warnings and uncaught exceptions become lines like all others. transformers and its hub would
    write their own text and bars; they read the environment when they are imported.
    """
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")

    def tell(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
        logger.critical("ended by a bug", exc_info=(kind, error or kind(), trace))

    logging.captureWarnings(True)
    sys.excepthook = tell
    threading.excepthook = lambda told: tell(told.exc_type, told.exc_value, told.exc_traceback)


def _formatter(process: str, kind: Literal["text", "json"]) -> logging.Formatter:
    if kind == "json":
        return JsonFormatter(process)
    return logging.Formatter(f"%(levelname)s %(asctime)s [{process}] %(message)s", "%m-%d %H:%M:%S")

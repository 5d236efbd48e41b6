"""Logs: one line format for every process of the daemon, on standard error.

Standard error may be a file: see `daemon.observability.log_file`.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal, TextIO

from configs.schema.runtime import LogConfig

# The attribute of a log record that holds the result of `fields`.
FIELDS = "fields"


def set_up(process: str, config: LogConfig, terminal: TextIO | None = None) -> logging.Logger:
    """Send this process's log to standard error under its own name; returns its logger.

    Errors are also written to the `terminal`, because a log file may not be read soon.
    """
    formatter = _formatter(process, config.log_format)
    handlers: list[logging.Handler] = [_Lines(sys.stderr)]
    if terminal is not None:
        handlers.append(_Terminal(terminal))
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)
    logger = logging.getLogger("tdpipe")
    logger.setLevel(config.log_level.upper())
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # `hub_files` logs lines instead
    if config.log_format == "json":
        _catch_all(logger)
    return logger


def fields(**values: object) -> Mapping[str, object]:
    """The fields of a line besides its message: `logger.info(..., extra=fields(status=200))`.

    In JSON, each field is a key; in text, the fields are omitted, so the message must be complete.
    """
    return {FIELDS: values}


class JsonFormatter(logging.Formatter):
    """Formats a line as an object: time (UTC), level, process, message, exception, fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Format the record as one line of JSON."""
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


class _Lines(logging.StreamHandler[TextIO]):
    """Writes lines; those that cannot be written are lost, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Print a traceback for a bug, but not for a stream that cannot be written to."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _Terminal(_Lines):
    """Writes errors to the terminal in which the daemon was started, unless it is closed."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setLevel(logging.ERROR)


def _catch_all(logger: logging.Logger) -> None:
    """Make this process and its children write only JSON objects.

    Warnings and uncaught exceptions are logged. The environment, read at import, turns off the
    messages of transformers, also on a terminal.
    """
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"

    def log_bug(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
        logger.critical("unhandled exception", exc_info=(kind, error or kind(), trace))

    logging.captureWarnings(True)
    sys.excepthook = log_bug
    threading.excepthook = lambda bug: log_bug(bug.exc_type, bug.exc_value, bug.exc_traceback)


def _formatter(process: str, kind: Literal["text", "json"]) -> logging.Formatter:
    if kind == "json":
        return JsonFormatter(process)
    return logging.Formatter(f"%(levelname)s %(asctime)s [{process}] %(message)s", "%m-%d %H:%M:%S")

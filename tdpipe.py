"""The command line: `tdpipe COMMAND ...`. Each command's module is imported only when it runs."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from daemon.version import VERSION

if TYPE_CHECKING:
    from client.llm import LLM
    from client.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]
COMMANDS = {
    "serve": ("daemon.supervisor", "serve a model over an OpenAI-compatible HTTP API"),
    "chat": ("client.chat", "talk with a running daemon"),
    "complete": ("client.complete", "let a running daemon continue a text"),
    "run-batch": ("client.run_batch", "answer a file of requests without a server"),
    "profile": ("workers.profiling.command", "measure what steps cost on this hardware"),
    "simulate": ("simulator.command", "try policies and nodes in virtual time"),
    "timeline": ("simulator.timeline", "draw the stages' timeline from a trace"),
    "replay": ("engine.trace.replay", "check that a journal's decisions can be reproduced"),
    "collect": ("predictor.collect", "ask a running daemon and save the lengths of its answers"),
    "train-predictor": ("predictor.train", "train an encoder to predict those lengths"),
}

_OFFLINE = {"LLM": "client.llm", "SamplingParams": "client.sampling_params"}


def __getattr__(name: str) -> object:
    """The offline API, `from tdpipe import LLM, SamplingParams`, is imported late as well."""
    if name not in _OFFLINE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFLINE[name]), name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if command in ("-V", "--version"):
        print(VERSION)
        return 0
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command not in COMMANDS:
        print(f"tdpipe: error: unknown command {command}\n{_usage()}", file=sys.stderr)
        return 2
    run: Callable[[Sequence[str]], int] = importlib.import_module(COMMANDS[command][0]).main
    return run(arguments)


def _usage() -> str:
    lines = [f"  {name:15} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: tdpipe COMMAND [--help] ...", "", *lines])


if __name__ == "__main__":
    sys.exit(main())

"""The command-line interface: `tdpipe COMMAND ...`. Each command is imported when it is called."""

import argparse
import difflib
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
    "route": ("router.process", "serve one HTTP API on many daemons"),
    "healthcheck": ("daemon.healthcheck", "ask a running daemon or router whether it is alive"),
    "chat": ("client.chat", "chat with a running daemon"),
    "complete": ("client.complete", "complete a prompt with a running daemon"),
    "top": ("client.top.command", "watch the pipeline of a running daemon in the terminal"),
    "bench": ("bench.command", "measure a server: TTFT, TPOT, throughput, goodput"),
    "run-batch": ("client.run_batch", "run a file of requests without a server"),
    "doctor": ("doctor.command", "check the nodes and their links before the daemon starts"),
    "profile": ("workers.profiling.command", "measure step costs on this hardware"),
    "simulate": ("simulator.command", "simulate policies and nodes in virtual time"),
    "timeline": ("simulator.timeline_plot", "plot the timeline of the stages from a trace"),
    "replay": ("simulator.replay", "verify that the decisions in a journal are reproduced"),
    "collect": ("predictor.collect", "collect output lengths from a running daemon"),
    "train-predictor": ("predictor.train", "train an encoder that predicts output lengths"),
}
COMPLETION = "--print-completion"

_OFFLINE = {"LLM": "client.llm", "SamplingParams": "client.sampling_params"}


def __getattr__(name: str) -> object:
    """The Python interface, `from tdpipe import LLM, SamplingParams`, is imported late too."""
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
    if command == COMPLETION and arguments in (["bash"], ["zsh"], ["fish"]):
        print(_completion(arguments[0]))
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"{_usage()}\n\ntdpipe: error: unknown command {command}{hint}", file=sys.stderr)
        return 2
    run: Callable[[Sequence[str]], int] = importlib.import_module(COMMANDS[command][0]).main
    return run(arguments)


def _usage() -> str:
    lines = [f"  {name:15} {what}" for name, (_, what) in COMMANDS.items()]
    options = [
        "  -h, --help      show this help, or that of a command: tdpipe COMMAND --help",
        "  -V, --version   show the version",
        f"  {COMPLETION} bash|zsh|fish",
        "                  print a completion script, for the shell to evaluate",
    ]
    usage = "usage: tdpipe COMMAND [options]"
    return "\n".join([usage, "", "Commands:", *lines, "", "Options:", *options])


def _completion(shell: str) -> str:
    """The script for this shell: it completes the commands and their settings."""
    import shtab

    from configs.command_line import make_parser
    from configs.commands import ROUTE, SERVE

    parser = argparse.ArgumentParser("tdpipe")
    commands = parser.add_subparsers()
    with_settings = {each.name: make_parser(each, VERSION, full=True) for each in (SERVE, ROUTE)}
    files = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "MODEL": shtab.DIRECTORY}
    for action in (action for each in with_settings.values() for action in each._actions):
        if action.metavar in files:
            action.complete = files[action.metavar]  # type: ignore[attr-defined]
    for name, (_, what) in COMMANDS.items():
        parents = [with_settings[name]] if name in with_settings else []
        commands.add_parser(name, help=what, parents=parents, add_help=not parents)
    return shtab.complete(parser, shell)


if __name__ == "__main__":
    sys.exit(main())

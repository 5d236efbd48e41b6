"""`tdpipe chat`: a conversation with a running daemon, in the terminal."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from client.own_daemon import own_daemon
from client.terminal import FAILED, INTERRUPTED, DaemonError, RemoteDaemon, complain, parser, run

SERVE = "--serve"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def main(argv: Sequence[str]) -> int:
    """Chat; return 0, or 1 if the daemon refuses, or 130 after Ctrl-C."""
    flags = parser(
        "chat",
        "Chat with a running daemon, or with one that is started for the chat. Every request "
        "contains the whole conversation. Ctrl-C ends an answer, Ctrl-D the chat.",
    )
    flags.add_argument("--system-prompt", help="a system message at the start")
    flags.add_argument(
        SERVE,
        nargs=argparse.REMAINDER,
        metavar="MODEL",
        help="start a daemon for this chat, which ends with it: all that follows is for "
        "`tdpipe serve`",
    )
    options = flags.parse_args(argv)
    settings = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    answer = ChatSession(options.system_prompt, settings).answer
    if options.serve is None:
        return run(options, answer)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with own_daemon(options.serve) as socket:
            options.uds = str(socket)
            return run(options, answer)
    except DaemonError as error:
        complain(error)
        return FAILED
    except KeyboardInterrupt:
        print()
        return INTERRUPTED


class ChatSession:
    """The conversation so far."""

    def __init__(self, system_prompt: str | None, settings: dict[str, Any]) -> None:
        self.messages: list[dict[str, str]] = []
        self._settings = {name: value for name, value in settings.items() if value is not None}
        if system_prompt:
            self._say("system", system_prompt)

    def answer(self, daemon: RemoteDaemon, model: str, text: str) -> None:
        """Print the answer to the user's next message; Ctrl-C ends the answer early.

        The conversation continues with the printed text. If no text was printed, the user's message
        is removed again. Raises `DaemonError`.
        """
        self._say("user", text)
        body = {"model": model, "messages": self.messages, **self._settings}
        said: list[str] = []
        try:
            for piece in _pieces(daemon.stream("/v1/chat/completions", body)):
                said.append(piece)
                print(piece, end="", flush=True)
        finally:
            if said:
                self._say("assistant", "".join(said))
            else:
                self.messages.pop()
        print()

    def _say(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})


def _pieces(choices: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Yield the text of the answer; reasoning is printed only in a terminal."""
    thinks = False
    for choice in choices:
        delta = choice.get("delta", {})
        thought, text = delta.get("reasoning_content"), delta.get("content")
        if thought and sys.stdout.isatty():
            print(_DIM + thought + _PLAIN, end="", flush=True)
            thinks = True
        if text:
            if thinks:
                print("\n")
                thinks = False
            yield text

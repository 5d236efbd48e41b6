"""The terminal: what `tdpipe chat` and `tdpipe complete` share, a daemon asked over HTTP."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from configs.client_key import KEY_VARIABLE, client_key

FAILED, INTERRUPTED = 1, 130
CONNECT_TIMEOUT_S = 5.0
# A daemon that is busy may let an answer wait for a while before its first token.
READ_TIMEOUT_S = 600.0
PROMPT = "> "
_JSON = {"content-type": "application/json"}


class DaemonError(Exception):
    """The daemon is not there or refuses; the text is one line for the user."""


class RemoteDaemon:
    """A running daemon; use as `with`."""

    def __init__(self, url: str, api_key: str | None = None, uds: str | None = None) -> None:
        base_url = url.rstrip("/").removesuffix("/v1")
        self._where = uds or base_url
        try:
            self._client = httpx.Client(
                base_url=base_url,
                headers={"authorization": _bearer(api_key)} if api_key else {},
                timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                transport=httpx.HTTPTransport(uds=uds) if uds else None,
            )
        except httpx.InvalidURL as error:
            raise DaemonError(f"{url} is no URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def first_model(self) -> str:
        """The name of the model that is served. Raises `DaemonError`."""
        with self._failures_told():
            response = self._client.get("/v1/models")
        if response.status_code != 200:
            raise DaemonError(_refusal(response.status_code, response.content))
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise DaemonError(f"no OpenAI API at {self._where}: it names no model") from error

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The first choice of each event of a streamed answer. Raises `DaemonError`."""
        request = _encode({**body, "stream": True})
        asking = self._client.stream("POST", path, content=request, headers=_JSON)
        with self._failures_told(), asking as response:
            if response.status_code != 200:
                raise DaemonError(_refusal(response.status_code, response.read()))
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield from _choices(line.removeprefix("data: "))
        raise DaemonError(f"the daemon at {self._where} hung up in the middle of its answer")

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Turn httpx's errors into `DaemonError`."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise DaemonError(f"no daemon at {self._where}: {reason}") from error


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """The flags that both commands have."""
    parser = argparse.ArgumentParser(prog=f"tdpipe {command}", description=description)
    add = parser.add_argument
    add("text", nargs="*", help="[standard input; in a terminal, a line at a time]")
    add("--url", default="http://127.0.0.1:8000", help="the daemon [%(default)s]")
    add("--uds", help="its Unix socket, in the place of the address in the URL")
    add("--api-key", default=client_key(), help=f"its key [the first in {KEY_VARIABLE}]")
    add("--model", help="the model's name [the first that is served]")
    add("--max-tokens", type=int, help="longest answer in tokens")
    add("--temperature", type=float, help="of the sampling; 0 is greedy [the daemon's]")
    return parser


def run(options: argparse.Namespace, answer: Callable[[RemoteDaemon, str, str], None]) -> int:
    """Ask what the user says, once or line by line; the exit code.

    `answer` takes the daemon, the model's name and the user's text, and prints.
    """
    try:
        with RemoteDaemon(options.url, options.api_key, options.uds) as daemon:
            model = options.model or daemon.first_model()
            text = _given_text(options.text)
            if text is None:
                _converse(lambda line: answer(daemon, model, line))
            else:
                answer(daemon, model, text)
    except DaemonError as error:
        _complain(error)
        return FAILED
    except KeyboardInterrupt:
        print()
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return 0


def _converse(answer: Callable[[str], None]) -> None:
    """Until Ctrl-D or Ctrl-C at the prompt; a Ctrl-C in an answer ends the answer alone."""
    import readline  # noqa: F401 - `input` edits lines and knows the earlier ones with it

    while True:
        try:
            line = input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            _complain(_no_text(error))
            continue
        if not line.strip():
            continue
        try:
            answer(line)
        except DaemonError as error:
            _complain(error)
        except KeyboardInterrupt:
            print()


def _given_text(words: list[str]) -> str | None:
    """What to ask; None when the user is at a terminal and has yet to say it."""
    if words:
        return " ".join(words)
    try:
        return None if sys.stdin.isatty() else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise _no_text(error) from error


def _bearer(api_key: str) -> str:
    """The key as a header; what a daemon would not take as one of its keys is not sent either."""
    if not (api_key.isascii() and api_key.isprintable()):
        raise DaemonError("the API key must consist of printable ASCII characters")
    return f"Bearer {api_key}"


def _encode(body: Mapping[str, Any]) -> bytes:
    """The body's JSON; what came from a command line or a terminal need not be text."""
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        raise _no_text(error) from error


def _no_text(error: UnicodeError) -> DaemonError:
    return DaemonError(f"what is asked is no text: {error}")


def _choices(event: str) -> Iterator[dict[str, Any]]:
    try:
        chunk = msgspec.json.decode(event, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise DaemonError("the daemon's stream holds something else than JSON") from error
    if "error" in chunk:
        raise DaemonError(str(chunk["error"].get("message")))
    yield from chunk.get("choices", [])[:1]


def _refusal(status: int, body: bytes) -> str:
    try:
        message = msgspec.json.decode(body)["error"]["message"]
    except (msgspec.DecodeError, LookupError, TypeError):
        message = body.decode(errors="replace")
    return f"the daemon refuses ({status}): {' '.join(str(message).split())[:500]}"


def _complain(error: DaemonError) -> None:
    print(f"tdpipe: error: {error}", file=sys.stderr)

"""The terminal: the HTTP client and prompt that `tdpipe chat` and `tdpipe complete` share."""

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
# On a busy daemon, a request may wait for some time before its first token.
READ_TIMEOUT_S = 600.0
PROMPT = "> "
_JSON = {"content-type": "application/json"}


class DaemonError(Exception):
    """The daemon is unreachable or refuses a request; the message is one line for the user."""


class RemoteDaemon:
    """A connection to a running daemon; use it in a `with` statement."""

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
            raise DaemonError(f"{url} is not a URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        """Whether the daemon listens and its stages are ready."""
        try:
            return self._client.get("/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def first_model(self) -> str:
        """Return the name of the served model. Raises `DaemonError`."""
        with self._daemon_errors():
            response = self._client.get("/v1/models")
        if response.status_code != 200:
            raise DaemonError(_refusal(response.status_code, response.content))
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise DaemonError(f"no OpenAI API at {self._where}: it lists no model") from error

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the first choice of each event of a streamed answer. Raises `DaemonError`."""
        request = _encode({**body, "stream": True})
        streaming = self._client.stream("POST", path, content=request, headers=_JSON)
        with self._daemon_errors(), streaming as response:
            if response.status_code != 200:
                raise DaemonError(_refusal(response.status_code, response.read()))
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield from _choices(line.removeprefix("data: "))
        raise DaemonError(
            f"the daemon at {self._where} closed the connection before the answer ended"
        )

    def lines(self, path: str, silence_s: float) -> Iterator[str]:
        """Yield the lines of an answer without an end. Raises `DaemonError`, also at its end.

        The daemon must send something at least every `silence_s` seconds.
        """
        timeout = httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
        streaming = self._client.stream("GET", path, timeout=timeout)
        with self._daemon_errors(), streaming as response:
            if response.status_code != 200:
                raise DaemonError(_refusal(response.status_code, response.read()))
            yield from response.iter_lines()
        raise DaemonError(f"the daemon at {self._where} has closed the connection")

    @contextmanager
    def _daemon_errors(self) -> Iterator[None]:
        """Turn httpx's errors into `DaemonError`."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise DaemonError(f"no daemon at {self._where}: {reason}") from error


def connection_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that say where the daemon is."""
    parser = argparse.ArgumentParser(prog=f"tdpipe {command}", description=description)
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="the daemon [%(default)s]")
    add("--uds", help="its Unix socket, instead of the address in the URL")
    add("--api-key", default=client_key(), help=f"its key [the first in {KEY_VARIABLE}]")
    return parser


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of `chat` and `complete`."""
    parser = connection_parser(command, description)
    add = parser.add_argument
    add("text", nargs="*", help="[standard input; in a terminal, a line at a time]")
    add("--model", help="the model's name [the first that is served]")
    add("--max-tokens", type=int, help="longest answer in tokens")
    add("--temperature", type=float, help="sampling temperature; 0 is greedy [the daemon's]")
    return parser


def run(options: argparse.Namespace, answer: Callable[[RemoteDaemon, str, str], None]) -> int:
    """Send the user's text, at once or line by line; return the exit code.

    `answer` takes the daemon, the name of the model and the user's text, and prints the answer.
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
        complain(error)
        return FAILED
    except KeyboardInterrupt:
        print()
        return INTERRUPTED
    except BrokenPipeError:  # for example from `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return 0


def _converse(answer: Callable[[str], None]) -> None:
    """Read lines until Ctrl-D or Ctrl-C at the prompt; during an answer, Ctrl-C only ends it."""
    import readline  # noqa: F401 - gives `input` line editing and history

    while True:
        try:
            line = input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            complain(_invalid_text(error))
            continue
        if not line.strip():
            continue
        try:
            answer(line)
        except DaemonError as error:
            complain(error)
        except KeyboardInterrupt:
            print()


def _given_text(words: list[str]) -> str | None:
    """Return the text to send; None if it is to be read from the terminal."""
    if words:
        return " ".join(words)
    try:
        return None if sys.stdin.isatty() else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise _invalid_text(error) from error


def _bearer(api_key: str) -> str:
    """Return the header value. Raises `DaemonError` if no daemon would accept the key."""
    if not (api_key.isascii() and api_key.isprintable()):
        raise DaemonError("the API key must consist of printable ASCII characters")
    return f"Bearer {api_key}"


def _encode(body: Mapping[str, Any]) -> bytes:
    """Encode the body as JSON; input from a command line or terminal may be invalid Unicode."""
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        raise _invalid_text(error) from error


def _invalid_text(error: UnicodeError) -> DaemonError:
    return DaemonError(f"the input is not valid text: {error}")


def _choices(event: str) -> Iterator[dict[str, Any]]:
    try:
        chunk = msgspec.json.decode(event, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise DaemonError("the daemon's stream is not JSON") from error
    if "error" in chunk:
        raise DaemonError(str(chunk["error"].get("message")))
    yield from chunk.get("choices", [])[:1]


def _refusal(status: int, body: bytes) -> str:
    try:
        message = msgspec.json.decode(body)["error"]["message"]
    except (msgspec.DecodeError, LookupError, TypeError):
        message = body.decode(errors="replace")
    return f"the daemon refuses ({status}): {' '.join(str(message).split())[:500]}"


def complain(error: DaemonError) -> None:
    """Print the error as every command does."""
    print(f"tdpipe: error: {error}", file=sys.stderr)

"""The terminal: `tdpipe chat` and `tdpipe complete` against a fake daemon."""

import io
import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tdpipe
from client import terminal
from tests.server.world import MAX_MODEL_LEN, MODEL, Daemon, saying, serving


class FakeDaemon(ThreadingHTTPServer):
    """Answers each chat with the next of `answers`: lists of pieces, or an error."""

    def __init__(self, answers: list[Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeDaemon

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["authorization"])
        self.answer(200, json.dumps({"data": [{"id": "the-model"}]}))

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.server.asked.append(json.loads(self.rfile.read(length)))
        pieces = self.server.answers.pop(0)
        if isinstance(pieces, int):
            self.answer(pieces, json.dumps({"error": {"message": "not\ntoday"}}))
            return
        events = [json.dumps({"choices": [{"delta": {"role": "assistant"}}]})]
        events += [
            json.dumps({"choices": [{"delta": {"content": piece}}]} if piece else {"choices": []})
            for piece in pieces
        ]
        self.answer(200, "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]))

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def fake(*answers: Any) -> Iterator[FakeDaemon]:
    with FakeDaemon(list(answers)) as daemon:
        thread = threading.Thread(target=daemon.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield daemon
        finally:
            daemon.shutdown()
            thread.join()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Type these lines at the prompt, then Ctrl-D."""
    lines: list[str] = []

    def read(_prompt: str = "") -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("TDPIPE_API_KEY", raising=False)
    return lines


def test_a_chat_sends_the_whole_conversation(
    typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["hello", "  ", "and you?"]
    with fake(["Hi", " there", ""], ["Fine"]) as daemon:
        flags = ["--url", daemon.url + "/v1", "--system-prompt", "Be kind.", "--temperature", "0"]
        assert tdpipe.main(["chat", *flags]) == 0
    assert capsys.readouterr().out == "Hi there\nFine\n\n"
    assert daemon.asked[1] == {
        "model": "the-model",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Hi there"},
            {"role": "user", "content": "and you?"},
        ],
        "temperature": 0.0,
        "stream": True,
    }


def test_a_single_question_gets_a_single_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with fake(["yes"]) as daemon:
        flags = ["--url", daemon.url, "--model", "mine", "--max-tokens", "5"]
        assert tdpipe.main(["chat", "is", "it?", *flags]) == 0
    assert capsys.readouterr().out == "yes\n"
    assert daemon.asked[0]["messages"] == [{"role": "user", "content": "is it?"}]
    assert (daemon.asked[0]["model"], daemon.asked[0]["max_tokens"]) == ("mine", 5)


def test_text_may_come_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    with fake(["yes"]) as daemon:
        assert tdpipe.main(["chat", "--url", daemon.url]) == 0
    assert daemon.asked[0]["messages"][0]["content"] == "from a pipe"
    assert capsys.readouterr().out == "yes\n"


def test_ctrl_c_ends_the_answer_and_not_the_chat(
    typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Screen(io.StringIO):
        """A screen with a user that presses Ctrl-C at "two"."""

        def write(self, text: str) -> int:
            written = super().write(text)
            if text == "two ":
                signal.raise_signal(signal.SIGINT)
            return written

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    typed += ["count", "go on"]
    with fake(["one ", "two ", "three"], ["four"]) as daemon:
        assert tdpipe.main(["chat", "--url", daemon.url]) == 0
    assert screen.getvalue() == "one two \nfour\n\n"
    assert daemon.asked[1]["messages"][1] == {"role": "assistant", "content": "one two "}


def test_a_refusal_is_one_line_and_the_chat_continues(
    typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["a", "b"]
    with fake(429, ["fine"]) as daemon:
        assert tdpipe.main(["chat", "--url", daemon.url]) == 0
    printed = capsys.readouterr()
    assert printed.err == "tdpipe: error: the daemon refuses (429): not today\n"
    assert [message["content"] for message in daemon.asked[1]["messages"]] == ["b"]


def test_the_key_comes_from_flag_or_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TDPIPE_API_KEY", "first, second")
    with fake(["a"], ["b"]) as daemon:
        tdpipe.main(["chat", "x", "--url", daemon.url])
        tdpipe.main(["chat", "x", "--url", daemon.url, "--api-key", "mine"])
    assert daemon.keys == ["Bearer first", "Bearer mine"]
    assert "first" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_an_unreachable_daemon_is_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tdpipe.main([command, "x", "--url", "http://127.0.0.1:1"]) == terminal.FAILED
    printed = capsys.readouterr().err
    assert printed.startswith("tdpipe: error: no daemon at http://127.0.0.1:1: ")
    assert len(printed.splitlines()) == 1


def test_an_invalid_url_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert tdpipe.main(["chat", "x", "--url", "nonsense"]) == terminal.FAILED
    assert "tdpipe: error: " in capsys.readouterr().err


def test_complete_continues_a_text(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--url", daemon.url, "--max-tokens", "40", "--temperature", "0"]
    assert tdpipe.main(["complete", "say", "hello", *flags]) == 0
    assert capsys.readouterr().out == "hello world €\n"


def test_complete_prints_the_daemons_refusal(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--url", daemon.url, "--max-tokens", str(MAX_MODEL_LEN)]
    assert tdpipe.main(["complete", "hi", *flags]) == terminal.FAILED
    assert "maximum context length is 64 tokens" in capsys.readouterr().err


def test_a_wrong_key_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, saying("hello"), api_key="right") as daemon:
        flags = ["--url", daemon.url, "--max-tokens", "9"]
        assert tdpipe.main(["complete", "x", *flags, "--api-key", "wrong"]) == terminal.FAILED
        assert "(401): Incorrect API key provided." in capsys.readouterr().err
        assert tdpipe.main(["complete", "x", *flags, "--api-key", "right"]) == 0
        assert tdpipe.main(["complete", "x", *flags, "--api-key", "right", "--model", MODEL]) == 0
    assert capsys.readouterr().out == "hello\nhello\n"


@pytest.mark.parametrize("key", ["schlüssel", "a\nb", "a\udcffb", "\x7f"])
def test_a_key_that_fits_in_no_header_is_reported_and_not_printed(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tdpipe.main(["chat", "x", "--api-key", key]) == terminal.FAILED
    printed = capsys.readouterr().err
    assert printed == "tdpipe: error: the API key must consist of printable ASCII characters\n"


def test_the_error_names_a_socket_without_a_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "daemon.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        hanging_up = threading.Thread(target=lambda: listener.accept()[0].close())
        hanging_up.start()
        assert tdpipe.main(["chat", "x", "--uds", path]) == terminal.FAILED
        hanging_up.join()
    printed = capsys.readouterr().err
    assert printed.startswith(f"tdpipe: error: no daemon at {path}: ")
    assert "http:" not in printed
    assert len(printed.splitlines()) == 1


def test_invalid_text_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake() as daemon:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), "utf-8"))
        assert tdpipe.main(["complete", "--url", daemon.url]) == terminal.FAILED
        assert tdpipe.main(["chat", "caf\udce9", "--url", daemon.url]) == terminal.FAILED
        assert not daemon.asked
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("tdpipe: error: the input is not valid text: ") for line in lines)


def test_a_line_of_invalid_text_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def read(_prompt: str = "") -> str:
        if not typed:
            raise EOFError
        return typed.pop(0).encode("latin-1").decode()

    monkeypatch.setattr("builtins.input", read)
    typed += ["café", "hello"]
    with fake(["Hi"]) as daemon:
        assert tdpipe.main(["chat", "--url", daemon.url]) == 0
    printed = capsys.readouterr()
    assert printed.out == "Hi\n\n"
    assert printed.err.startswith("tdpipe: error: the input is not valid text: ")

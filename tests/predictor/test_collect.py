"""`tdpipe collect` against a small HTTP server: it can be resumed, and it reports failures."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from predictor import collect
from predictor.dataset import read_requests

Answer = tuple[int, dict[str, Any]]


def good(body: dict[str, Any]) -> Answer:
    """As many tokens as the prompt has characters."""
    usage = {"completion_tokens": len(body["prompt"])}
    return 200, {"choices": [{"text": "x", "finish_reason": "stop"}], "usage": usage}


@dataclass
class Daemon:
    """The requests that it received, and its address."""

    url: str
    keys: set[str | None] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return sorted(body["prompt"] for body in self.bodies)


@contextmanager
def serving(
    answer: Callable[[dict[str, Any]], Answer] = good, fingerprint: str | None = "cafe"
) -> Iterator[Daemon]:
    """A daemon of one model that answers with `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            daemon.keys.add(self.headers["authorization"])
            model = {"id": "little"}
            if fingerprint:
                model["tokenizer_fingerprint"] = fingerprint
            self._send(200, {"data": [model]} if self.path == "/v1/models" else {})

        def do_POST(self) -> None:
            daemon.keys.add(self.headers["authorization"])
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            daemon.bodies.append(body)
            self._send(*answer(body))

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        daemon = Daemon(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield daemon
        finally:
            server.shutdown()
            thread.join()


def run(tmp_path: Path, daemon: Daemon, *changes: str, prompts: str = "a\nbb\nccc\n") -> int:
    """One collection."""
    (tmp_path / "p.txt").write_text(prompts)
    paths = ("--prompts", f"{tmp_path}/p.txt", "--out", f"{tmp_path}/out.jsonl")
    return collect.main(["--url", daemon.url, *paths, *changes])


def collected(tmp_path: Path) -> dict[str, int]:
    """Prompts and lengths, as training reads them."""
    requests = read_requests(tmp_path / "out.jsonl", min_requests=1)
    return dict(zip(requests.prompts, requests.output_lens.tolist(), strict=True))


def test_the_key_is_sent_with_every_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDPIPE_API_KEY", "one,two")
    with serving() as daemon:
        assert run(tmp_path, daemon) == 0
        assert daemon.keys == {"Bearer one"}
        daemon.keys.clear()
        assert run(tmp_path, daemon, "--api-key", "mine", prompts="d\n") == 0
        assert daemon.keys == {"Bearer mine"}


def test_every_answer_s_length_is_kept(tmp_path: Path) -> None:
    with serving() as daemon:
        assert run(tmp_path, daemon, "--max-tokens", "7", "--temperature", "0.5") == 0
    assert collected(tmp_path) == {"a": 1, "bb": 2, "ccc": 3}
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {"prompt": "a", "output_len": 1, "finish_reason": "stop", "tokenizer": "cafe"} in lines
    settings = {"model": "little", "max_tokens": 7, "temperature": 0.5}
    assert sorted(daemon.bodies, key=lambda body: str(body["prompt"])) == [
        settings | {"prompt": prompt} for prompt in ("a", "bb", "ccc")
    ]


def test_prompts_that_are_kept_already_are_not_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as daemon:
        assert run(tmp_path, daemon, "--limit", "2") == 0
        assert daemon.prompts == ["a", "bb"]
        assert run(tmp_path, daemon) == 0
        assert daemon.prompts == ["a", "bb", "ccc"]
    assert "2 of 3 prompts are already in" in capsys.readouterr().out
    assert collected(tmp_path) == {"a": 1, "bb": 2, "ccc": 3}


def test_a_line_that_was_left_torn_is_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"prompt": "a", "output_len": 1}\n{"prompt": "bb", "outp')
    with serving() as daemon:
        assert run(tmp_path, daemon) == 0
        assert daemon.prompts == ["bb", "ccc"]
    assert collected(tmp_path) == {"a": 1, "bb": 2, "ccc": 3}


def test_a_prompt_that_comes_twice_is_asked_once(tmp_path: Path) -> None:
    with serving() as daemon:
        assert run(tmp_path, daemon, prompts="a\na\nbb\na\n") == 0
        assert daemon.prompts == ["a", "bb"]


def test_no_fingerprint_is_kept_where_none_is_reported(tmp_path: Path) -> None:
    with serving(fingerprint=None) as daemon:
        assert run(tmp_path, daemon) == 0
    assert read_requests(tmp_path / "out.jsonl", 1).tokenizer is None


def test_a_refused_prompt_is_reported_and_the_others_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        refusal = {"error": {"message": "too long"}}
        return (400, refusal) if body["prompt"] == "bb" else good(body)

    with serving(answer) as daemon:
        assert run(tmp_path, daemon) == 1
    assert collected(tmp_path) == {"a": 1, "ccc": 3}
    assert "1 requests failed, the first with status 400: too long" in capsys.readouterr().err


def test_a_busy_daemon_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_PAUSE_S", 0.0)
    refusals = iter([429, 503])

    def answer(body: dict[str, Any]) -> Answer:
        status = next(refusals, None)
        return (status, {}) if status else good(body)

    with serving(answer) as daemon:
        assert run(tmp_path, daemon, "--concurrency", "1") == 0
        assert len(daemon.bodies) == 5
    assert collected(tmp_path) == {"a": 1, "bb": 2, "ccc": 3}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (("--url", "http://127.0.0.1:1"), "no daemon at http://127.0.0.1:1"),
        (("--url", "nonsense"), "no daemon at nonsense"),
        (("--model", "other"), "no model 'other' at http://127.0.0.1:"),
        (("--prompts", "nowhere"), "cannot read nowhere"),
        (("--out", "nowhere/out"), "cannot write nowhere/out"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    tmp_path: Path, changes: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as daemon:
        assert run(tmp_path, daemon, *changes) == 2
        assert daemon.bodies == []
    err = capsys.readouterr().err
    assert err.startswith("tdpipe: error: ")
    assert problem in err
    assert err.count("\n") == 1


def test_lengths_of_another_tokenizer_are_not_mixed_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = '{"prompt": "a", "output_len": 1, "tokenizer": "beef"}\n'
    (tmp_path / "out.jsonl").write_text(line)
    with serving() as daemon:
        assert run(tmp_path, daemon) == 2
    assert "another tokenizer (beef; this model has cafe)" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == line


def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("my thesis\n")
    with serving() as daemon:
        assert run(tmp_path, daemon) == 2
    assert (tmp_path / "out.jsonl").read_text() == "my thesis\n"


def test_an_answer_without_usage_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda _: (200, {"choices": []})) as daemon:
        assert run(tmp_path, daemon, "--concurrency", "1") == 2
    assert "has no usage.completion_tokens" in capsys.readouterr().err

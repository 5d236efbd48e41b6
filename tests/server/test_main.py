"""The process: its port, its signals, its exit status, and one clear line when it cannot start."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from configs import loader
from daemon.processes.child_process import reported_failure
from tests.server.world import (
    MODEL,
    PATIENCE_S,
    TOKENIZER,
    FakeEngine,
    config,
    events,
    generated,
    save_model,
)
from wire.messages import Abort, Finished, Submit

ROOT = Path(__file__).parents[2]


@contextmanager
def process(folder: Path, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """`python -m server` with these settings; killed at the end if it still runs."""
    loader.save(config(folder, **settings), folder)
    command = [sys.executable, "-m", "server", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            yield server
        finally:
            server.kill()


def read_until(server: subprocess.Popen[str], words: str) -> str:
    """The log up to the first line with these words."""
    assert server.stderr is not None
    log = ""
    for line in server.stderr:
        log += line
        if words in line:
            return log
    raise AssertionError(f"{words!r} is not in the log:\n{log}")


def test_a_process_serves_returns_its_port_and_drains_on_sigterm(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    engine = FakeEngine(config(tmp_path).runtime.server_address)
    try:
        with process(tmp_path) as server:
            log = read_until(server, "ready: ")
            port = int((tmp_path / "port").read_text())
            url = f"http://127.0.0.1:{port}"
            assert f"listening on {url} (OpenAI API under /v1)" in log
            assert (
                "ready: little, 2 stages, 1 x native, 1 x plain attention, KV cache 640 tokens"
                in log
            )
            assert "torch" not in loaded_libraries(server.pid)
            body = {"model": MODEL, "prompt": "hi", "stream": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
                (submit,) = engine.wait_for(Submit)
                server.send_signal(signal.SIGTERM)
                read_until(server, "shutting down")
                assert httpx.get(f"{url}/ready").status_code == 503
                token_ids = TOKENIZER.encode("hello")
                engine.send(
                    generated(submit.sequence_id, *token_ids),
                    Finished(submit.sequence_id, "length"),
                )
                response.read()
                assert events(response)[-1]["choices"][0]["finish_reason"] == "length"
            assert server.wait(PATIENCE_S) == 0
    finally:
        engine.close()


def test_a_second_signal_ends_the_process_with_a_word_to_its_clients(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    engine = FakeEngine(config(tmp_path).runtime.server_address)
    try:
        with process(tmp_path) as server:
            read_until(server, "ready: ")
            url = f"http://127.0.0.1:{(tmp_path / 'port').read_text()}/v1/completions"
            body = {"model": MODEL, "prompt": "hi", "stream": True}
            with httpx.stream("POST", url, json=body) as response:
                engine.wait_for(Submit)
                server.send_signal(signal.SIGTERM)
                read_until(server, "shutting down")
                server.send_signal(signal.SIGINT)
                response.read()
                assert events(response)[-1]["error"]["message"] == "The server is shutting down."
            assert server.wait(PATIENCE_S) == 0
            engine.wait_for(Abort)
    finally:
        engine.close()


def test_a_process_serves_on_a_unix_socket_and_takes_it_away_with_it(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    engine = FakeEngine(config(tmp_path).runtime.server_address)
    path = tmp_path / "http.sock"
    try:
        with process(tmp_path, uds=path, api_key="a-secret", log_format="json") as server:
            log = read_until(server, "ready: ")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
                key = {"authorization": "Bearer a-secret"}
                assert client.get("http://x/v1/models", headers=key).status_code == 200
                assert client.get("http://x/v1/models").status_code == 401
            log += read_until(server, '"status": 401')
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE_S) == 0
    finally:
        engine.close()
    assert not path.exists()
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(f"listening on the Unix socket {path} " in line["message"] for line in lines)
    assert [line["status"] for line in lines if "status" in line] == [200, 401]
    assert "a-secret" not in log


def test_a_certificate_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with process(tmp_path, ssl_certfile="/nowhere.pem") as server:
        check_gives_up(server, tmp_path, "cannot read /nowhere.pem: No such file or directory")


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with process(tmp_path, port=port) as server:
            check_gives_up(server, tmp_path, f"port {port} is already in use")


def test_a_tokenizer_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    (save_model(tmp_path / "model") / "tokenizer.json").write_text("{broken")
    with process(tmp_path) as server:
        check_gives_up(server, tmp_path, "cannot load the tokenizer of ")


def check_gives_up(server: subprocess.Popen[str], folder: Path, words: str) -> None:
    _, log = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 1
    assert log == "", "the supervisor logs it, once and last"
    assert words in (reported_failure(folder) or "")


def loaded_libraries(pid: int) -> str:
    """The files that a process has mapped, where the system lists them."""
    maps = Path(f"/proc/{pid}/maps")
    return maps.read_text() if os.path.exists(maps) else ""

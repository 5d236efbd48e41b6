"""The health check follows the settings of the process that it asks, and says what it found."""

import json
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import trustme

from configs import loader
from configs.config import Config
from configs.schema.route import RouteConfig
from daemon import healthcheck
from daemon.healthcheck import PID_FILE, PORT_FILE, NotHealthyError, check
from daemon.runtime_folder import runtime_folder

FAILED = {"error": {"message": "The daemon has given up: no weights"}}
ANSWERS = {"/live": (200, {"status": "alive"}), "/ready": (503, FAILED)}


class Handler(BaseHTTPRequestHandler):
    """Answers as a daemon does, under its root path."""

    root_path = ""

    def do_GET(self) -> None:
        status, body = ANSWERS[self.path.removeprefix(self.root_path)]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def address_string(self) -> str:
        return "somewhere"  # a Unix socket's peer has no address


@contextmanager
def serving(
    listener: socket.socket, root_path: str = "", tls: ssl.SSLContext | None = None
) -> Iterator[None]:
    """Serve on a listening socket."""
    handler = type("Handler", (Handler,), {"root_path": root_path})
    server = socketserver.BaseServer(listener.getsockname(), handler)

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:  # it was closed
                return
            try:
                accepted = tls.wrap_socket(accepted, server_side=True) if tls else accepted
                handler(accepted, ("", 0), server)
                accepted.close()
            except OSError:
                accepted.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def saved(folder: Path, **settings: Any) -> Path:
    """A runtime folder with these settings of a daemon."""
    loader.save(Config.of(runtime_dir=folder, **settings), folder)
    return folder


def test_a_daemon_is_asked_at_the_port_that_it_has_chosen(tmp_path: Path) -> None:
    saved(tmp_path, host="0.0.0.0", port=0)
    with socket.create_server(("127.0.0.1", 0)) as listener, serving(listener):
        (tmp_path / PORT_FILE).write_text(str(listener.getsockname()[1]))
        assert check(tmp_path, "/live") == "alive"
        with pytest.raises(NotHealthyError, match=r"/ready answers 503: .*given up: no weights"):
            check(tmp_path, "/ready")


def test_a_router_is_asked_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, serving(listener):
        loader.save(RouteConfig.of(port=listener.getsockname()[1]), tmp_path)
        assert check(tmp_path, "/live") == "alive"


def test_root_path_and_unix_socket_are_followed(tmp_path: Path) -> None:
    saved(tmp_path, uds=tmp_path / "http.sock", root_path="/llm")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "http.sock"))
        listener.listen()
        with serving(listener, root_path="/llm"):
            assert check(tmp_path, "/live") == "alive"


@pytest.mark.parametrize("clients", ["any", "of the authority", "of another authority"])
def test_tls_is_followed_also_where_clients_need_a_certificate(
    tmp_path: Path, clients: str
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("llm.example.org")
    file = tmp_path / "server.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients != "any":
        (authority if clients == "of the authority" else other).configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener, serving(listener, tls=context):
        saved(
            tmp_path,
            port=listener.getsockname()[1],
            ssl_certfile=file,
            ssl_ca_certs=file,
            ssl_cert_reqs=0 if clients == "any" else 2,
        )
        status = check(tmp_path, "/live")
        if clients == "of another authority":
            assert "only clients with a certificate" in status
            with pytest.raises(NotHealthyError, match="TLS fails"):
                check(tmp_path, "/ready")
        else:
            assert status == "alive"


def test_nothing_that_listens_is_not_healthy(tmp_path: Path) -> None:
    with pytest.raises(NotHealthyError, match=f"nothing runs in {tmp_path}"):
        check(tmp_path, "/live")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    saved(tmp_path, port=port)
    with pytest.raises(NotHealthyError, match=f"no answer from port {port} of 127.0.0.1"):
        check(tmp_path, "/live")


def test_a_process_that_hangs_is_not_healthy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel accepts, nobody answers
        saved(tmp_path, port=listener.getsockname()[1])
        with pytest.raises(NotHealthyError, match="timed out"):
            check(tmp_path, "/live", timeout_s=0.1)


def test_a_node_without_a_server_is_alive_while_its_process_runs(tmp_path: Path) -> None:
    """It never listens, and its container must not count as unhealthy for that."""
    secret = "a-secret-of-24-characters"
    saved(tmp_path, nnodes=2, node_rank=1, headless=True, cluster_secret=secret)
    with pytest.raises(NotHealthyError, match=f"nothing runs in {tmp_path}: no pid"):
        check(tmp_path, "/live")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (tmp_path / PID_FILE).write_text(f"{process.pid}\n")
        assert check(tmp_path, "/live") == "alive, without a server (headless)"
        with pytest.raises(NotHealthyError, match="takes no requests"):
            check(tmp_path, "/ready")
    with pytest.raises(NotHealthyError, match=f"{process.pid}, has ended"):
        check(tmp_path, "/live")


def test_the_folder_of_a_daemon_has_what_the_check_looks_at(tmp_path: Path) -> None:
    secret = "a-secret-of-24-characters"
    nodes = {"nnodes": 2, "node_rank": 1, "headless": True, "cluster_secret": secret}
    with runtime_folder(Config.of(runtime_dir=tmp_path / "run", **nodes)):
        assert healthcheck.main(["--runtime-dir", str(tmp_path / "run")]) == 0
    assert healthcheck.main(["--runtime-dir", str(tmp_path / "run")]) == 1


def test_the_command_finds_the_folder_by_flag_or_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert healthcheck.main([]) == 2
    assert "--runtime-dir" in capsys.readouterr().err
    monkeypatch.setenv(healthcheck.VARIABLE, str(tmp_path / "a"))
    assert healthcheck.main([]) == 1
    assert f"nothing runs in {tmp_path / 'a'}" in capsys.readouterr().out
    assert healthcheck.main(["--runtime-dir", str(tmp_path / "b"), "--ready"]) == 1
    assert f"nothing runs in {tmp_path / 'b'}" in capsys.readouterr().out


def test_it_starts_without_the_packages_of_the_daemon() -> None:
    program = "import sys, daemon.healthcheck; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert not {"pydantic", "yaml", "httpx", "torch", "fastapi"} & {*run.stdout.split()}

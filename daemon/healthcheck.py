"""`tdpipe healthcheck`: asks the daemon or router of a runtime folder whether it is alive or ready.

For probes that run a command, such as Docker's HEALTHCHECK. The folder's settings say how to reach
the process, so the probe follows its port, Unix socket, TLS and root path. A node without a server
(headless) is alive while its process runs. The probe is started every few seconds, so it imports
only the standard library.
"""

import argparse
import http.client
import json
import os
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
PID_FILE = "pid"
PORT_FILE = "port"
"""The file with the port that the process listens on, if it does."""
VARIABLE = "TDPIPE_RUNTIME_DIR"
TIMEOUT_S = 4.0
# A wildcard address is for listening only.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}
_REQUIRED = 2  # ssl_cert_reqs


class NotHealthyError(Exception):
    """The process is not alive, or not ready; the message is one line."""


def main(argv: Sequence[str]) -> int:
    """Run `tdpipe healthcheck ARGV`; returns 0 if the process is healthy, otherwise 1."""
    given = _parser().parse_args(argv)
    folder = given.runtime_dir or os.environ.get(VARIABLE)
    if not folder:
        print(f"tdpipe: error: give --runtime-dir, or set {VARIABLE}", file=sys.stderr)
        return 2
    try:
        print(check(Path(folder), "/ready" if given.ready else "/live", given.timeout))
    except NotHealthyError as error:
        print(error)  # Docker keeps what a probe prints, and `docker inspect` shows it
        return 1
    return 0


def check(folder: Path, path: str, timeout_s: float = TIMEOUT_S) -> str:
    """Ask for this path; returns the status of the process, raises `NotHealthyError`."""
    saved = _settings(folder)
    if saved.get("nodes", {}).get("headless"):
        return _check_process(folder, path)
    # A router has them beside the others, a daemon in a part.
    listen: Mapping[str, Any] = saved.get("server", saved)["listen"]
    try:
        with closing(_connect(folder, listen, timeout_s)) as connected:
            return _ask(connected, listen.get("root_path", "") + path)
    except ssl.SSLError as error:
        if path == "/live" and listen.get("ssl_cert_reqs") == _REQUIRED:
            return f"answers, but admits only clients with a certificate ({_reason(error)})"
        raise NotHealthyError(f"TLS fails: {_reason(error)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise NotHealthyError(f"no answer from {_where(folder, listen)}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tdpipe healthcheck",
        description="Ask a running daemon or router of this host whether it is alive. The exit "
        "code is 0 if it is, otherwise 1.",
    )
    parser.add_argument(
        "--runtime-dir", metavar="DIR", help=f"its runtime folder (default: ${VARIABLE})"
    )
    parser.add_argument(
        "--ready",
        action="store_true",
        help="ask whether it takes requests (/ready) instead of whether it is alive (/live)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help="time for each step of the answer (default: %(default)g)",
    )
    return parser


def _settings(folder: Path) -> Mapping[str, Any]:
    """The settings of the process. Raises `NotHealthyError`."""
    try:
        saved: Mapping[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    except OSError as error:
        raise NotHealthyError(f"nothing runs in {folder}: {error.strerror}") from error
    except ValueError as error:  # it is being written
        raise NotHealthyError(f"{folder / CONFIG_FILE} is incomplete") from error
    return saved


def _check_process(folder: Path, path: str) -> str:
    """Look at the process of a node without a server; it ends when it gives up.

    It replaces stages that end or hang, so they are not looked at. Raises `NotHealthyError`.
    """
    if path != "/live":
        raise NotHealthyError("a node without a server (headless) takes no requests")
    try:
        pid = int((folder / PID_FILE).read_text())
    except (OSError, ValueError) as error:
        raise NotHealthyError(f"nothing runs in {folder}: no {PID_FILE}") from error
    try:
        os.kill(pid, 0)
    except ProcessLookupError as error:
        raise NotHealthyError(f"the process of {folder}, {pid}, has ended") from error
    except PermissionError:  # it runs, as another user
        pass
    return "alive, without a server (headless)"


def _connect(folder: Path, listen: Mapping[str, Any], timeout_s: float) -> socket.socket:
    """A connection, with TLS if the process expects it. Raises `OSError`."""
    if listen.get("uds"):
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(timeout_s)
        connected.connect(listen["uds"])
    else:
        host = _LOOPBACK.get(listen["host"], listen["host"])
        connected = socket.create_connection((host, _port(folder, listen)), timeout_s)
    if not listen.get("ssl_certfile"):
        return connected
    return _client_tls(listen).wrap_socket(connected)


def _port(folder: Path, listen: Mapping[str, Any]) -> int:
    """The port in use, which `--port 0` leaves open; it is written when the process listens."""
    with suppress(OSError, ValueError):
        return int((folder / PORT_FILE).read_text())
    return int(listen["port"])


def _client_tls(listen: Mapping[str, Any]) -> ssl.SSLContext:
    """The certificate is not verified: it names the host as clients see it.

    Where clients need a certificate, the server's own one is tried.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if listen.get("ssl_cert_reqs"):
        with suppress(OSError):
            context.load_cert_chain(listen["ssl_certfile"], listen.get("ssl_keyfile"))
    return context


def _ask(connected: socket.socket, path: str) -> str:
    """The `status` in the answer. Raises `NotHealthyError` unless it is 200."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = connected
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != http.HTTPStatus.OK:
        raise NotHealthyError(f"{path} answers {answer.status}: {_error(body)}")
    return str(json.loads(body)["status"])


def _error(body: bytes) -> str:
    """The message in OpenAI's error body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _where(folder: Path, listen: Mapping[str, Any]) -> str:
    return listen.get("uds") or f"port {_port(folder, listen)} of {listen['host']}"

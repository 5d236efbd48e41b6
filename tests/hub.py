"""A model hub of its own: the parts of the hub's HTTP API that its library needs for a download."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789" * 4
_CHUNK = 1 << 14


class FakeHub(ThreadingHTTPServer):
    """Serves one model at one commit; `requests` has the paths that were asked for.

    With `bytes_per_s`, files of weights come no faster. The first `num_cuts` connections that
    answer with weights are closed halfway.
    """

    daemon_threads = True

    def __init__(self, address: str, model: str, files: Mapping[str, bytes]) -> None:
        super().__init__((address, 0), _Handler)
        self.model, self.files = model, dict(files)
        self.bytes_per_s, self.num_cuts = 0.0, 0
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"


@contextmanager
def fake_hub(
    files: Mapping[str, bytes], model: str = "org/model", address: str = "127.0.0.1"
) -> Iterator[FakeHub]:
    """A hub with these files, by name."""
    with FakeHub(address, model, files) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint, by name."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.server
        hub.requests.append(f"{self.command} {path}")
        if path.startswith(f"/api/models/{hub.model}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
                for name, content in hub.files.items()
            ]
            self._answer(json.dumps(entries).encode())
        elif path.startswith(f"/api/models/{hub.model}"):
            self._answer(json.dumps({"id": hub.model, "sha": COMMIT}).encode())
        elif path.startswith(f"/{hub.model}/resolve/"):
            name = path.removeprefix(f"/{hub.model}/resolve/").partition("/")[2]
            if name in hub.files:
                self._answer(hub.files[name], are_weights=name.endswith(".safetensors"))
            else:
                self._refuse("EntryNotFound")
        else:
            self._refuse("RepoNotFound")

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, content: bytes, *, are_weights: bool = False) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{_digest(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if are_weights and self.server.num_cuts:
            self.server.num_cuts -= 1
            self.close_connection = True
            content = content[: len(content) // 2]
        for at in range(0, len(content), _CHUNK):
            self.wfile.write(content[at : at + _CHUNK])
            if are_weights and self.server.bytes_per_s:
                time.sleep(_CHUNK / self.server.bytes_per_s)

    def log_message(self, *_: Any) -> None:
        pass


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()

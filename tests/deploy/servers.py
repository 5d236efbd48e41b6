"""A real Prometheus and a real Alertmanager with the files of deploy/, and a webhook."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import yaml

from tests.deploy.tools import ROOT
from tests.end_to_end.conftest import free_port

PATIENCE_S = 120.0


def wait_for(condition: Callable[[], object], what: Callable[[], str]) -> None:
    """Poll until true; an AssertionError that says `what` is missing if it is not in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


class _Server:
    """A program with a page `/-/ready` on a port of its own, for the length of a `with` block."""

    def __init__(self, folder: Path, command: Sequence[str | Path]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log_path = folder / "log"
        self.port = free_port()
        address = f"--web.listen-address=127.0.0.1:{self.port}"
        self._command = [*command, address, "--log.level=warn"]
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        log = self._exits.enter_context(self._log_path.open("wb"))
        process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._exits.callback(process.wait, PATIENCE_S)
        self._exits.callback(process.terminate)
        try:
            wait_for(self._is_ready, self.log)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.__exit__(*error)  # type: ignore[arg-type]

    def log(self) -> str:
        """What it has printed."""
        return self._log_path.read_text(errors="replace")

    def get(self, path: str, **parameters: str) -> Any:
        """The JSON of a page, or its text."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        url = f"http://127.0.0.1:{self.port}{path}{query}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            body = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
        return json.loads(body) if is_json else body

    def _is_ready(self) -> bool:
        try:
            self.get("/-/ready")
        except OSError:
            return False
        return True


class Prometheus(_Server):
    """Prometheus with deploy/prometheus, where each minute of an alert's `for` is a second.

    It scrapes every second, because a test cannot wait for the minutes of an operator.
    """

    def __init__(self, program: str, folder: Path, **targets: Sequence[str]) -> None:
        config = folder / "config"
        shutil.copytree(ROOT / "deploy" / "prometheus", config)
        _replace(config / "prometheus.yml", r"15s", "1s")
        _replace(config / "rules" / "alerts.yml", r"(?m)^(\s+for: \d+)m$", r"\1s")
        for name, addresses in targets.items():
            file = config / "targets" / f"{name}.yml"
            assert file.exists()
            file.write_text(yaml.safe_dump([{"targets": list(addresses)}]))
        storage = f"--storage.tsdb.path={folder / 'storage'}"
        super().__init__(folder, [program, f"--config.file={config / 'prometheus.yml'}", storage])

    def ask(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The series that a query has now, with their values."""
        data = self.get("/api/v1/query", query=expr)["data"]
        assert data["resultType"] == "vector", expr
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def label_values(self, metric: str, label: str) -> list[str]:
        """The values of a label."""
        parameters = {"match[]": metric}
        values: list[str] = self.get(f"/api/v1/label/{label}/values", **parameters)["data"]
        return values


class Alertmanager(_Server):
    """Alertmanager with deploy/alertmanager, which sends to a webhook and does not wait long."""

    def __init__(self, program: str, folder: Path, webhook: str) -> None:
        config = yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())
        config["route"] |= {"group_wait": "1s", "group_interval": "1s"}
        for receiver in config["receivers"]:
            receiver["webhook_configs"] = [{"url": f"{webhook}/{receiver['name']}"}]
        folder.mkdir(parents=True)
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        storage = f"--storage.path={folder / 'storage'}"
        no_cluster = "--cluster.listen-address="
        super().__init__(
            folder, [program, f"--config.file={folder / 'config.yml'}", storage, no_cluster]
        )


class Webhook:
    """A server that keeps the alerts that were sent to it, by path, while the block runs."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, dict[str, Any]]] = []
        received = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                received.extend((self.path, alert) for alert in body["alerts"])
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _replace(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count, f"{pattern} is not in {path}"
    path.write_text(text)

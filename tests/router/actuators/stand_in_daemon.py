"""A daemon without a model, for tests: it starts, listens, becomes ready and ends as it is told."""

import argparse
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from daemon.processes import child_process


def main() -> None:
    """Serve /ready, and the environment at /environment."""
    child_process.tie_to_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--runtime-dir", type=Path)
    parser.add_argument("--unready-answers", type=int, default=0)
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--fail", help="the root cause")
    given = parser.parse_args()
    given.runtime_dir.mkdir()
    if given.fail:
        child_process.report_failure(given.runtime_dir, given.fail)
        sys.exit(3)
    action = signal.SIG_IGN if given.ignore_sigterm else lambda *_: os._exit(0)
    signal.signal(signal.SIGTERM, action)

    class Handler(BaseHTTPRequestHandler):
        num_unready = given.unready_answers

        def do_GET(self) -> None:
            body = b""
            status = 200
            if self.path == "/environment":
                body = json.dumps(dict(os.environ) | {"PID": os.getpid()}).encode()
            elif Handler.num_unready:
                Handler.num_unready -= 1
                status = 503
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer((given.host, given.port), Handler)
    time.sleep(0.05)  # the port file is there later than the process
    (given.runtime_dir / "port").write_text(str(server.server_port))
    server.serve_forever()


if __name__ == "__main__":
    main()

"""Containers of the image under test, run with podman on the network of this host."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx

# The first one compiles the kernels, which it leaves to the others.
START_TIMEOUT_S = 600.0
VOLUME = "tdpipe-test-data"
STOP_TIMEOUT_S = 45
# Finds the processes of the daemon with this title, and prints their ids.
_FIND = """
import pathlib, sys
for folder in sorted(pathlib.Path("/proc").glob("[0-9]*"), key=lambda f: int(f.name)):
    title = (folder / "cmdline").read_bytes().replace(b"\\0", b" ").split(b" ")[0]
    if title == b"tdpipe:" + sys.argv[1].encode():
        print(folder.name)
"""


def podman(*arguments: str, check: bool = True, timeout_s: float = 120) -> str:
    """What a command of podman prints."""
    done = subprocess.run(
        ["podman", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert not check or done.returncode == 0, f"podman {arguments[0]}: {done.stderr}"
    return done.stdout.strip()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Container:
    """A container with a read-only root file system, for the length of a `with` block."""

    def __init__(self, image: str, *arguments: str, port: int | None, flags: str = "") -> None:
        self.port = port
        self.name = f"tdpipe-test-{uuid4().hex[:8]}"
        self._image, self._arguments = image, arguments
        self._flags = [*shlex.split(os.environ.get("IMAGE_RUN_FLAGS", "")), *shlex.split(flags)]

    def __enter__(self) -> Self:
        arguments = self._arguments
        if self.port is not None:
            arguments = (*arguments, "--port", str(self.port))
        volume = f"--volume={VOLUME}:/home/tdpipe/.local/share/tdpipe"
        fixed = ("run", "--detach", "--name", self.name, "--network=host", "--read-only", volume)
        podman(*fixed, *self._flags, self._image, *arguments)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            sys.stderr.write(self.log())
        # A container that is being restarted cannot be removed at that moment.
        assert any(
            podman("rm", "--force", "--time=10", self.name, check=False) for _ in range(3)
        ), self.name

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """The log of its processes."""
        done = subprocess.run(
            ["podman", "logs", self.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout

    def state(self) -> dict[str, Any]:
        """Whether it runs, its exit code, its number of restarts."""
        (found,) = json.loads(podman("inspect", self.name))
        state: dict[str, Any] = found["State"] | {"RestartCount": found["RestartCount"]}
        return state

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in it."""
        return subprocess.run(
            ["podman", "exec", self.name, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def health(self, *flags: str) -> bool:
        """The health check's word."""
        return self.run("tdpipe", "healthcheck", *flags).returncode == 0

    def is_ready(self) -> bool:
        """What /ready says."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Poll until true; an AssertionError with the log if it is not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s:\n{self.log()}"
            time.sleep(0.1)

    def processes(self, role: str) -> list[int]:
        """The processes in it with this role in their title, oldest first."""
        found = self.run("python3", "-c", _FIND, role)
        return [int(line) for line in found.stdout.split()]

    def kill(self, process: int) -> None:
        """SIGKILL to a process in it; if the container ends by that, so does this command."""
        self.run("sh", "-c", f"kill -9 {process}")


def certificate(folder: Path) -> Path:
    """A file with a certificate and its key, which the container's user may read."""
    import trustme

    file = folder / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
    file.chmod(0o644)
    folder.chmod(0o755)
    return file

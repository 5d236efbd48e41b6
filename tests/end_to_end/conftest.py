"""Daemons that many tests share, each started once: tests leave them as they were."""

import json
import random
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests import cluster
from tests.end_to_end.daemon import LOG_FILE, PREDICTOR, SECRET, Daemon
from tests.hosts import Hosts


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make nodes`."""
    parser.addoption("--nodes", type=int, default=1, help="hosts on which each daemon's stages run")


@pytest.fixture(scope="session", autouse=True)
def _nodes(pytestconfig: pytest.Config) -> Iterator[None]:
    """With `--nodes`, the stages of every daemon run on so many hosts, if it has so many."""
    num_nodes = pytestconfig.getoption("--nodes", default=1)
    if num_nodes == 1:
        yield
        return
    with Hosts(num_nodes) as hosts, pytest.MonkeyPatch.context() as patch:
        cluster.spread(hosts, num_nodes, patch)
        yield


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The default daemon, as `make serve` starts it."""
    with Daemon(tmp_path_factory.mktemp("demo")) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One whose processes may be killed often; under nohup, where other modules have our names."""
    folder = tmp_path_factory.mktemp("lasting")
    (folder / "server.py").write_text("raise SystemExit(3)")
    (folder / "engine").mkdir()
    (folder / "engine" / "__init__.py").write_text("raise SystemExit(4)")
    arguments = ["--dtype", "float32", "--device", "cpu"]
    arguments += ["--max-restarts", "100", "--log-format", "json"]
    with Daemon(folder, *arguments, cwd=folder, under=("nohup",)) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One whose prompts go in chunks and whose KV cache is so small that some are preempted.

    Its sockets can be reached from other hosts, with a secret.
    """
    folder = tmp_path_factory.mktemp("tight")
    settings = folder / "settings.yaml"
    endpoints = (f"tcp://0.0.0.0:{free_port()}" for _ in range(2))
    names = ("server_endpoint", "stage_endpoint")
    settings.write_text(
        json.dumps({"cluster_secret": SECRET, **dict(zip(names, endpoints, strict=True))})
    )
    arguments = ["--config", str(settings), "--log-level", "debug"]
    arguments += ["--dtype", "float32", "--device", "cpu", "--max-num-batched-tokens", "16"]
    arguments += ["--kv-cache-memory-bytes", "300000", "--predictor", "constant:1"]
    with Daemon(folder, *arguments) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def predicting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One with the demo model's predictor, which may be killed often, and a log file."""
    folder = tmp_path_factory.mktemp("predicting")
    path = folder / LOG_FILE
    arguments = ["--predictor", PREDICTOR, "--log-file", str(path), "--max-restarts", "100"]
    with Daemon(folder, *arguments) as daemon:
        yield daemon
    assert path.read_text().splitlines()[-1].endswith("stopped")
    errors = daemon.log().splitlines()  # also shown where the daemon was started
    assert all(line.startswith("ERROR ") for line in errors)


def free_port() -> int:
    """A port that was free a moment ago, and that the kernel gives no client meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port

"""Sockets that other hosts may reach: foreign peers are dropped and counted, ours still work."""

import json
import socket
from pathlib import Path

import psutil

from configs import loader
from tests.end_to_end.daemon import Daemon
from wire.messages import Hello, ToServer
from wire.sockets import Spoke

SECRET = "a-secret-of-this-test"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_foreign_peer_is_dropped_and_counted(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    ports = free_port(), free_port()
    settings.write_text(
        json.dumps(
            {
                "cluster_secret": SECRET,
                "server_endpoint": f"tcp://0.0.0.0:{ports[0]}",
                "stage_endpoint": f"tcp://0.0.0.0:{ports[1]}",
            }
        )
    )
    with Daemon(tmp_path, "--config", str(settings), "--log-level", "debug") as daemon:
        assert daemon.metric("tdpipe_dropped_messages_total") == 0
        for port in ports:
            seen = daemon.metric("tdpipe_dropped_messages_total")
            with Spoke[ToServer](f"tcp://127.0.0.1:{port}", "server", ToServer) as stranger:
                stranger.send(Hello())  # which would make the engine abort all that is open
                daemon.wait_for(lambda seen=seen: _dropped(daemon) > seen)
        daemon.wait_for(lambda: "without the cluster_secret" in daemon.log())
        answer = daemon.client().completions.create(
            model="tdpipe-demo", prompt="Count to three in words.\n", max_tokens=20, temperature=0
        )
        assert answer.choices[0].text == "one two three"
        assert (tmp_path / "run" / loader.RESOLVED).stat().st_mode & 0o077 == 0
        assert SECRET in (tmp_path / "run" / loader.RESOLVED).read_text()
        visible = daemon.log() + daemon.get("/metrics")[1] + daemon.get("/openapi.json")[1]
        visible += daemon.get("/health")[1]
        processes = [psutil.Process(daemon.process.pid)]
        for process in [*processes, *processes[0].children(recursive=True)]:
            visible += " ".join(process.cmdline()) + json.dumps(process.environ())
        assert SECRET not in visible


def test_without_a_secret_an_endpoint_for_other_hosts_is_refused(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--stage-endpoint", "tcp://0.0.0.0:7000")
    daemon.start()
    assert daemon.wait_end() == 2
    assert "stage_endpoint tcp://0.0.0.0:7000 can be reached from other hosts" in daemon.log()
    assert daemon.log().count("\n") == 1


def _dropped(daemon: Daemon) -> float:
    return daemon.metric("tdpipe_dropped_messages_total")

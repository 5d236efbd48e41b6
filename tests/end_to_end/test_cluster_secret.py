"""Sockets that other hosts may reach: foreign peers are dropped and counted, ours still work."""

import json
from pathlib import Path

import psutil

from configs import loader
from tests.end_to_end.daemon import SECRET, Daemon
from wire.messages import Hello, ToServer
from wire.sockets import Spoke


def test_a_foreign_peer_is_dropped_and_counted(tight: Daemon) -> None:
    settings = json.loads((tight.folder / "settings.yaml").read_text())
    for name in ("server_endpoint", "stage_endpoint"):
        endpoint = settings[name].replace("0.0.0.0", "127.0.0.1")
        seen = _dropped(tight)
        with Spoke[ToServer](endpoint, "server", ToServer) as stranger:
            stranger.send(Hello())  # which would make the engine abort all that is open
            tight.wait_for(lambda seen=seen: _dropped(tight) > seen)
    tight.wait_for(lambda: "without the cluster_secret" in tight.log())
    with tight.client() as client:
        answer = client.completions.create(
            model="tdpipe-demo", prompt="Count to three in words.\n", max_tokens=20, temperature=0
        )
    assert answer.choices[0].text == "one two three"


def test_the_secret_is_in_one_file_of_the_owner_s_and_nowhere_else(tight: Daemon) -> None:
    resolved = tight.folder / "run" / loader.RESOLVED
    assert resolved.stat().st_mode & 0o077 == 0
    assert SECRET in resolved.read_text()
    printed = tight.log() + tight.get("/metrics")[1] + tight.get("/openapi.json")[1]
    printed += tight.get("/health")[1]
    processes = [psutil.Process(tight.process.pid)]
    for process in [*processes, *processes[0].children(recursive=True)]:
        printed += " ".join(process.cmdline()) + json.dumps(process.environ())
    assert SECRET not in printed


def test_without_a_secret_an_endpoint_for_other_hosts_is_refused(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--stage-endpoint", "tcp://0.0.0.0:7000")
    daemon.start()
    assert daemon.wait_end() == 2
    assert "stage_endpoint tcp://0.0.0.0:7000 can be reached from other hosts" in daemon.log()
    assert daemon.log().count("\n") == 1


def _dropped(daemon: Daemon) -> float:
    return daemon.metric("tdpipe_dropped_messages_total")

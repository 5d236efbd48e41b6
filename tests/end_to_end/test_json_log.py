"""--log-format json: each line of the daemon is an object, also when a stage is lost."""

import json
import signal
from pathlib import Path

from tests.end_to_end.daemon import Daemon


def test_every_line_is_an_object_also_when_a_stage_is_lost(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--log-format", "json") as daemon:
        daemon.descendants()["stage"][0].send_signal(signal.SIGKILL)
        daemon.wait_for(lambda: daemon.health()["status"] != "ok")
        daemon.wait_ready()
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    assert all({"time", "level", "process", "message"} <= line.keys() for line in lines)
    processes = {line["process"] for line in lines}
    assert processes >= {"tdpipe", "server", "engine", "stage 0", "stage 1"}

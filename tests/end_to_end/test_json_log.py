"""--log-format json: each line of the daemon is an object, also when a stage is lost."""

import json
import signal

from tests.end_to_end.daemon import Daemon


def test_every_line_is_an_object_also_when_a_stage_is_lost(lasting: Daemon) -> None:
    lasting.descendants()["stage"][0].send_signal(signal.SIGKILL)
    lasting.wait_for(lambda: lasting.health()["status"] != "ok")
    lasting.wait_ready()
    whole, _, _ = lasting.log().rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    assert all({"time", "level", "process", "message"} <= line.keys() for line in lines)
    processes = {line["process"] for line in lines}
    assert processes >= {"tdpipe", "server", "engine", "stage 0", "stage 1"}

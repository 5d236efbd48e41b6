"""The stream of the page, from a real pipeline: its steps, on all stages, with their phases."""

import httpx
import msgspec

from tests.end_to_end.daemon import Daemon
from wire.pipeline_status import KEPT_S, PipelineStatus

TIMEOUT_S = 60.0


def test_whoever_begins_to_watch_sees_the_past_of_all_stages(demo: Daemon) -> None:
    body = {"prompt": "Count to nine in words.\n", "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{demo.url}/v1/completions", json=body, timeout=TIMEOUT_S)
    assert answer.status_code == 200
    seen: set[tuple[int, str]] = set()
    with httpx.stream("GET", f"{demo.url}/pipeline/status", timeout=TIMEOUT_S) as response:
        for line in response.iter_lines():
            status = msgspec.json.decode(line, type=PipelineStatus)
            steps = status.steps
            seen |= set(zip(steps.stages, steps.phases, strict=True))
            for began_at, ended_at in zip(steps.began_at, steps.ended_at, strict=True):
                assert status.at - 2 * KEPT_S < began_at < ended_at < status.at + KEPT_S
            if {(stage, phase) for stage in range(2) for phase in "pd"} <= seen:
                break
    assert status.num_stages == 2
    assert status.first_token_s is not None
    assert status.samples or status.steps.stages

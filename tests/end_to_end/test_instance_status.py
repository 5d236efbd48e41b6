"""The status of a real daemon, while it works."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec

from tests.end_to_end.daemon import Daemon
from wire.instance_status import InstanceStatus
from wire.prefix_keys import prefix_keys
from wire.promises import SLACK_QUANTILES

TIMEOUT_S = 60.0


@contextmanager
def following(daemon: Daemon) -> Iterator[Iterator[InstanceStatus]]:
    """The statuses of one stream."""
    with httpx.stream("GET", f"{daemon.url}/instance/status", timeout=TIMEOUT_S) as response:
        lines = response.iter_lines()
        yield (msgspec.json.decode(line, type=InstanceStatus) for line in lines)


def test_the_scheduler_tells_what_it_has_promised(tight: Daemon) -> None:
    body = {"prompt": "Count to 90 in digits.\n", "max_tokens": 170, "temperature": 0}
    body |= {"stream": True, "ignore_eos": True}
    url = f"{tight.url}/v1/completions"
    with following(tight) as statuses:
        idle = next(status for status in statuses if not status.promises.num_decoding)
        assert idle.ready
        assert idle.models == ("tdpipe-demo",)
        assert idle.promises.free_kv_tokens <= idle.promises.kv_tokens > 0
        assert idle.promises.costs.seconds == tuple(sorted(idle.promises.costs.seconds))
        with httpx.stream("POST", url, json=body, timeout=TIMEOUT_S) as answer:
            assert int(answer.headers["x-tdpipe-prompt-tokens"]) > 5
            busy = next(status for status in statuses if status.promises.num_decoding)
            assert len(busy.promises.slack_s) == len(SLACK_QUANTILES)
            assert busy.promises.free_kv_tokens < busy.promises.kv_tokens
        # The client has left.
        assert next(status for status in statuses if not status.promises.num_decoding).ready


def test_the_beginnings_of_prompts_are_told(tight: Daemon) -> None:
    prompt = "Spell TIGER." + " " * 600  # many spaces are few tokens, or are cut off
    body = {"prompt": prompt, "max_tokens": 2, "truncate_prompt_tokens": 100}
    with following(tight) as statuses:
        next(statuses)
        answer = httpx.post(f"{tight.url}/v1/completions", json=body, timeout=TIMEOUT_S)
        assert answer.status_code == 200, answer.text
        keys = prefix_keys(body, prompt.encode())
        assert next(status for status in statuses if status.prefix_added).prefix_added == keys

"""The stats log: what a line says, and when there is none."""

import json
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.observability.logs import JsonFormatter
from server.requests.monitoring.stats_log import StatsLog, describe
from wire.messages import EngineReady, StageStats, Stats


def stats(uptime_s: float = 10.0, **values: Any) -> Stats:
    return Stats(True, "decode", blocks_total=100, uptime_s=uptime_s, **values)


def stage(busy_s: float, bubble_s: float, *, exact: bool = True) -> StageStats:
    return StageStats(0, 1, 0.0, 0, 0, busy_s, 0.0, bubble_s, exact)


class Log:
    """A stats log whose engine the test plays."""

    def __init__(self) -> None:
        self._client = SimpleNamespace(stats=None)
        self._log = StatsLog(cast(Any, self._client), 10.0)

    def take(self, now: Stats | None) -> None:
        self._client.stats = now
        self._log.log(10.0)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO)
    return Log()


def test_a_line_is_about_the_time_since_the_one_before(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.take(stats(10.0, prompt_tokens=1000, generated_tokens=50, stages=(stage(1.0, 1.0),)))
    caplog.clear()
    log.take(
        stats(
            20.0,
            prompt_tokens=1500,
            generated_tokens=2050,
            live=3,
            waiting=2,
            blocks_used=25,
            preemptions=4,
            prefix_queries=200,
            prefix_hits=50,
            stages=(stage(10.0, 2.0),),
        )
    )
    assert caplog.messages == [
        "50.0 prompt and 200.0 output tokens/s, 3 running and 2 waiting sequences, KV cache 25%, "
        "bubbles 10%, prefix cache hits 25%, 4 preemptions"
    ]
    line = json.loads(JsonFormatter("server").format(caplog.records[0]))
    assert line["output_tokens_per_s"] == 200.0
    assert line["kv_share"] == 0.25


def test_what_is_not_measured_is_not_told(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    log.take(stats(live=1, stages=(stage(1.0, 1.0, exact=False),)))
    assert "bubbles" not in caplog.messages[0]
    assert "prefix" not in caplog.messages[0]
    assert "preemptions" not in caplog.messages[0]


def test_after_the_last_request_there_is_one_more_line_and_then_none(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.take(None)
    log.take(stats())
    assert caplog.messages == []
    log.take(stats(20.0, generated_tokens=7))
    log.take(stats(30.0, generated_tokens=7))
    log.take(stats(40.0, generated_tokens=7))
    assert len(caplog.messages) == 2
    assert caplog.messages[1] == "idle: no requests"


def test_a_request_that_waits_is_told_though_nothing_moves(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.take(stats(10.0, waiting=1))
    log.take(stats(20.0, waiting=1))
    assert len(caplog.messages) == 2


def test_the_counters_of_a_new_engine_begin_at_0(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.take(stats(100.0, generated_tokens=100_000))
    caplog.clear()
    log.take(stats(3.0, generated_tokens=100))
    assert "10.0 output tokens/s" in caplog.messages[0]


def test_a_pipeline_is_described_by_its_devices_kernels_and_sizes() -> None:
    ready = EngineReady(
        2,
        10,
        16,
        64,
        attention=("native", "native"),
        devices=("a CPU", "a CPU"),
        dtype="float32",
    )
    assert describe(ready) == (
        "2 stages on a CPU, float32 weights, native attention, KV cache 160 tokens, "
        "max_model_len 64 tokens"
    )


def test_stages_that_differ_are_counted() -> None:
    ready = EngineReady(
        3, 10, 16, 64, attention=("triton",) * 3, devices=("A", "B", "A"), dtype="bfloat16"
    )
    assert describe(ready).startswith("3 stages on 2 x A, 1 x B, bfloat16 weights")

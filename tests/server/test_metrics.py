"""Metrics: what the requests did, and what the engine last said."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.world import Daemon, generated, saying, serving, stats
from wire.messages import EngineReady, StageStats, Submit


def samples(daemon: Daemon) -> dict[str, float]:
    """All samples by name and labels' values."""
    families = text_string_to_metric_families(daemon.get("/metrics").text)
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_name_is_ours_and_plain(daemon: Daemon) -> None:
    names = {name.split(" ")[0] for name in samples(daemon)}
    assert all(name.startswith("tdpipe_") and ":" not in name for name in names)


def test_requests_are_counted_by_outcome(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello")) as daemon:
        daemon.complete(n=2)
        daemon.complete(stream=True)
        daemon.complete(n=0)
        daemon.wait_until(lambda: daemon.drain.num_open == 0)
        found = samples(daemon)
        assert found["tdpipe_requests_total success"] == 2
        assert found["tdpipe_requests_total refused"] == 1
        assert found["tdpipe_requests_total error"] == 0
        assert found["tdpipe_prompt_tokens_total"] == 4
        assert found["tdpipe_generated_tokens_total"] == 6
        assert found["tdpipe_time_to_first_token_seconds_count"] == 3
        assert found["tdpipe_time_per_output_token_seconds_count"] == 3
        assert found["tdpipe_request_duration_seconds_count"] == 2


def test_a_client_that_left_is_counted_as_such(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        body = {"model": "little", "prompt": "hi", "stream": True}
        with daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=body):
            (submit,) = daemon.engine.wait_for(Submit)
            daemon.engine.send(generated(submit.sequence_id, 5))
        daemon.wait_until(lambda: daemon.drain.num_open == 0)
        assert samples(daemon)["tdpipe_requests_total disconnect"] == 1


def test_the_engines_figures_are_its_last_stats(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        report = stats(
            uptime_s=2.0, waiting=3, live=4, blocks_used=5, blocks_total=40, switches=6, steals=7
        )
        daemon.engine.send(report)
        daemon.wait_until(lambda: daemon.client.stats == report)
        found = samples(daemon)
        assert found["tdpipe_phase decode"] == 1
        assert found["tdpipe_phase prefill"] == 0
        assert found["tdpipe_waiting_sequences"] == 3
        assert found["tdpipe_live_sequences"] == 4
        assert found["tdpipe_kv_blocks_used"] == 5
        assert found["tdpipe_kv_blocks"] == 40
        assert found["tdpipe_phase_switches_total"] == 6
        assert found["tdpipe_work_steals_total"] == 7
        assert found["tdpipe_stage_steps_total 1"] == 3
        assert found["tdpipe_stage_attention_backend native 0"] == 1
        assert found["tdpipe_stage_attention_backend plain 1"] == 1
        assert found["tdpipe_cost_model_ratio 1"] == 0.9
        assert "tdpipe_cost_model_ratio 0" not in found  # no step yet


def test_the_bubble_ratio_is_the_idle_part_since_ready(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        client = daemon.client
        before = client.ready
        daemon.engine.send(EngineReady(2, 40, 16, 64), stats())
        daemon.wait_until(lambda: client.ready is not before and client.work_at_ready is not None)
        assert client.work_at_ready is not None
        assert set(client.work_at_ready.busy_s) == {0, 1}
        # A stage that was busy for no time at all since then, and one busy for ever.
        start = client.work_at_ready.busy_s
        stages = (
            StageStats(0, 100, 0.1, 7, 3, start[0]),
            StageStats(1, 101, 0.1, 7, 3, start[1] + 1e9),
        )
        report = stats(uptime_s=2.0, stages=stages)
        daemon.engine.send(report)
        daemon.wait_until(lambda: client.stats == report)
        found = samples(daemon)
        assert found["tdpipe_stage_bubble_ratio 0"] == pytest.approx(1.0)
        assert found["tdpipe_stage_bubble_ratio 1"] == pytest.approx(0.0)

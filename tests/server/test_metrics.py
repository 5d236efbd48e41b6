"""Metrics: what the requests did, and what the engine last said."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from server.api_table.metrics_table import table
from server.http.errors import REFUSALS
from tests.server.world import MODEL, Daemon, generated, saying, serving, stats
from wire.histogram import Histogram
from wire.messages import Finished, StageLoss, StageLosses, StageStats, Submit


def read(daemon: Daemon) -> list[Sample]:
    """All samples of the page."""
    families = text_string_to_metric_families(daemon.get("/metrics").text)
    return [sample for family in families for sample in family.samples]


def samples(daemon: Daemon) -> dict[str, float]:
    """All samples by name and labels' values, except the model's name."""
    return {
        " ".join([each.name, *(v for k, v in each.labels.items() if k != "model_name")]): each.value
        for each in read(daemon)
    }


def test_every_name_is_ours_and_plain_but_those_of_the_process(daemon: Daemon) -> None:
    names = {name.split(" ")[0] for name in samples(daemon)}
    assert all(name.startswith(("tdpipe_", "process_")) and ":" not in name for name in names)


def test_the_page_and_the_table_in_the_docs_have_the_same_metrics(daemon: Daemon) -> None:
    page = dict(re.findall(r"^# TYPE (\S+) (\S+)$", daemon.get("/metrics").text, re.MULTILINE))
    rows = re.findall(r"^\| `((?:tdpipe|process)_\w+)` \| (\w+) \|", table(), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert dict(rows) == page


def test_every_sample_of_ours_has_the_name_of_the_model(daemon: Daemon) -> None:
    for sample in read(daemon):
        expected = MODEL if sample.name.startswith("tdpipe_") else None
        assert sample.labels.get("model_name") == expected, sample


def test_the_versions_are_those_of_what_is_installed(daemon: Daemon) -> None:
    (info,) = (sample for sample in read(daemon) if sample.name == "tdpipe_build_info")
    assert info.value == 1
    assert info.labels["torch_version"] == metadata.version("torch")
    assert set(info.labels) >= {"version", "python_version", "transformers_version"}


def test_the_process_is_the_servers(daemon: Daemon) -> None:
    before = samples(daemon)
    assert abs(before["process_start_time_seconds"] - psutil.Process().create_time()) < 2
    assert before["process_resident_memory_bytes"] > 2**20
    ends_at = time.process_time() + 0.1
    while time.process_time() < ends_at:
        pass
    # The system counts in hundredths of a second.
    spent = samples(daemon)["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    assert spent > 0.08


def test_requests_are_counted_by_outcome(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello")) as daemon:
        daemon.complete(n=2)
        daemon.complete(stream=True)
        daemon.complete(n=0)
        daemon.wait_until(lambda: daemon.drain.num_open == 0)
        found = samples(daemon)
        assert found["tdpipe_requests_total success"] == 2
        assert found["tdpipe_requests_total invalid"] == 1
        assert found["tdpipe_requests_total refused"] == 0
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


def test_counters_of_stages_and_phases_are_those_of_the_engine(tmp_path: Path) -> None:
    costs = Histogram((0.5, 1.0))
    costs.observe_all([0.25, 0.75, 2.0])
    with serving(tmp_path) as daemon:
        report = stats(
            stages=(StageStats(0, 100, 0.1, 7, 3, 2.5, 0.0, 1.5), StageStats(1, 101, 0.1, 7, 3, 4)),
            phase_s={"prefill": 3.0, "decode": 1.0},
            switch_costs={"decode": costs.figures()},
            request_times={"queue": costs.figures()},
            topups=5,
            topup_tokens=60,
        )
        daemon.engine.send(report)
        daemon.wait_until(lambda: daemon.client.stats == report)
        found = samples(daemon)
        assert found["tdpipe_stage_busy_seconds_total 0"] == 2.5
        assert found["tdpipe_stage_bubble_seconds_total 0"] == 1.5
        assert found["tdpipe_phase_seconds_total prefill"] == 3
        assert found["tdpipe_topups_total"] == 5
        assert found["tdpipe_topup_tokens_total"] == 60
        assert found["tdpipe_phase_switch_cost_seconds_bucket 0.5 decode"] == 1
        assert found["tdpipe_phase_switch_cost_seconds_bucket 1.0 decode"] == 2
        assert found["tdpipe_phase_switch_cost_seconds_bucket +Inf decode"] == 3
        assert found["tdpipe_phase_switch_cost_seconds_sum decode"] == 3.0
        assert found["tdpipe_request_queue_time_seconds_count"] == 3
        assert "tdpipe_request_decode_time_seconds_count" not in found


def test_losses_of_stages_are_named_as_the_engine_names_them(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        report = stats(
            losses=(
                StageLosses(1, "signal", "SIGSEGV", 2),
                StageLosses(-1, "other", "", 1),
                StageLosses(0, "oom_killer", "SIGKILL", 1),
            ),
            last_loss=StageLoss(0, 4711, "oom_killer", "SIGKILL", 1234.5),
            starved_s=0.75,
        )
        daemon.engine.send(report)
        daemon.wait_until(lambda: daemon.client.stats == report)
        page, found = read(daemon), samples(daemon)
    losses = {
        (each.labels["stage"], each.labels["cause"], each.labels["code"]): each.value
        for each in page
        if each.name == "tdpipe_stage_losses_total"
    }
    assert losses == {
        ("1", "signal", "SIGSEGV"): 2,
        ("", "other", ""): 1,
        ("0", "oom_killer", "SIGKILL"): 1,
    }
    newest = "tdpipe_last_stage_loss_timestamp_seconds"
    (last,) = (sample for sample in page if sample.name == newest)
    assert last.value == 1234.5
    assert (last.labels["stage"], last.labels["pid"]) == ("0", "4711")
    assert found["tdpipe_stage_starved_seconds_total"] == 0.75


def test_seconds_that_only_time_the_launches_of_kernels_are_not_shown(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        stage = StageStats(0, 100, 0.1, 7, 3, 2.5, 0.0, 1.5, has_exact_times=False)
        report = stats(stages=(stage,))
        daemon.engine.send(report)
        daemon.wait_until(lambda: daemon.client.stats == report)
        found = samples(daemon)
        assert found["tdpipe_stage_steps_total 0"] == 3
        assert not [name for name in found if "busy_seconds_total 0" in name or "bubble" in name]


def test_lengths_are_those_of_each_prompt_and_each_complete_answer(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello")) as daemon:
        assert daemon.complete(prompt=[[5] * 3, [5] * 7], n=2, max_tokens=1).status_code == 200
        found = samples(daemon)
    assert found["tdpipe_request_prompt_tokens_count"] == 2
    assert found["tdpipe_request_prompt_tokens_sum"] == 10
    assert found["tdpipe_request_prompt_tokens_bucket 2.0"] == 0
    assert found["tdpipe_request_prompt_tokens_bucket 5.0"] == 1
    assert found["tdpipe_request_generation_tokens_count"] == 4
    assert found["tdpipe_request_generation_tokens_sum"] == 4


def test_the_latency_of_a_token_is_from_the_one_before_it(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, ThreadPoolExecutor() as pool:
        answer = pool.submit(daemon.complete, max_tokens=3)
        (submit,) = daemon.engine.wait_for(Submit)
        for number in range(3):
            daemon.engine.send(generated(submit.sequence_id, 5))
            daemon.wait_until(lambda least=number + 1: daemon.client.num_generated == least)
            time.sleep(0.06)
        daemon.engine.send(Finished(submit.sequence_id, "length"))
        assert answer.result().status_code == 200
        found = samples(daemon)
    assert found["tdpipe_inter_token_latency_seconds_count"] == 2
    assert 0.12 <= found["tdpipe_inter_token_latency_seconds_sum"] < 2.0
    assert found["tdpipe_inter_token_latency_seconds_bucket 0.05"] == 0


TEXT = {"content-type": "text/plain"}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "queue_full": ({"max_num_queued_reqs": 1}, {}),
    "larger_than_queue": ({"max_num_queued_reqs": 1}, {"n": 2}),
    "body_memory": ({"max_intake_bytes": 1024}, {"prompt": "x" * 100_000}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refusal_is_counted_by_what_was_exhausted(tmp_path: Path, reason: str) -> None:
    settings, body = REFUSED[reason]
    with serving(tmp_path, **settings) as daemon, ThreadPoolExecutor() as pool:
        waiting = pool.submit(daemon.complete)
        (submit,) = daemon.engine.wait_for(Submit)
        assert daemon.complete(**body).status_code == 429
        found = samples(daemon)
        daemon.engine.send(Finished(submit.sequence_id, "length"))
        waiting.result()
    reasons = {r: found[f"tdpipe_refused_requests_total {r}"] for r in REFUSALS}
    assert reasons == {r: float(r == reason) for r in REFUSALS}
    assert found["tdpipe_requests_total refused"] == 1
    assert found["tdpipe_requests_total invalid"] == 0


def test_a_daemon_that_is_not_ready_refuses_and_says_why(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        daemon.client.ready = None  # as before the stages were ready for the first time
        assert daemon.complete().status_code == 503
        assert samples(daemon)["tdpipe_refused_requests_total model_not_ready"] == 1


def test_errors_of_clients_are_counted_by_their_code_and_are_no_refusals(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello")) as daemon:
        daemon.complete(n=0)
        daemon.complete(temperature="warm")
        daemon.complete(model="another")
        daemon.http.post(f"{daemon.url}/v1/completions", content=b"{}", headers=TEXT)
        found = samples(daemon)
        assert found["tdpipe_invalid_requests_total invalid_value"] == 1
        assert found["tdpipe_invalid_requests_total invalid_type"] == 1
        assert found["tdpipe_invalid_requests_total model_not_found"] == 1
        assert found["tdpipe_invalid_requests_total unsupported_media_type"] == 1
        assert found["tdpipe_requests_total invalid"] == 4
        assert found["tdpipe_requests_total refused"] == 0

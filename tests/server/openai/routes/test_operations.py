"""The operator's routes: health is measured, not claimed."""

from pathlib import Path
from typing import Any

import pytest

from daemon.processes import child_process
from daemon.version import VERSION
from server.openai.routes import operations
from server.requests import engine_client
from tests.server.world import MODEL, TOKENIZER, Daemon, serving, stats
from wire.messages import StageStats, Stats


def test_health_returns_the_age_of_every_heartbeat(daemon: Daemon) -> None:
    daemon.engine.introduce()
    response = daemon.get("/health")
    body = response.json()
    assert response.status_code == 200
    assert body["status"] == "ok"
    assert 0 <= body["server"]["heartbeat_age_s"] < 2
    assert 0 <= body["engine"]["heartbeat_age_s"] < 2
    assert [(stage["stage"], stage["pid"]) for stage in body["stages"]] == [(0, 100), (1, 101)]
    assert all(0.1 <= stage["heartbeat_age_s"] < 2 for stage in body["stages"])


def stage(number: int, age_s: float = 0.1) -> StageStats:
    return StageStats(number, 100 + number, age_s, 1, 1, 0.0)


@pytest.mark.parametrize(
    ("report", "status"),
    [
        (stats(ready=False), "not ready"),
        (stats(stages=(stage(0),)), "stage missing"),
        (stats(stages=(stage(0), stage(1, age_s=31.0))), "stage missing"),
    ],
)
def test_health_is_503_when_something_is_missing(
    tmp_path: Path, report: Stats, status: str
) -> None:
    with serving(tmp_path) as daemon:
        daemon.engine.send(report)
        daemon.wait_until(lambda: daemon.client.stats == report)
        response = daemon.get("/health")
        assert response.status_code == 503
        assert response.json()["status"] == status


def test_health_is_503_when_the_engine_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as daemon:
        monkeypatch.setattr(operations, "SILENCE_S", 0.0)
        assert daemon.get("/health").json()["status"] == "engine lost"
        monkeypatch.undo()
        daemon.engine.answers_hello = daemon.engine.beats = False
        monkeypatch.setattr(engine_client, "SILENCE_S", 0.0)
        daemon.wait_until(lambda: not daemon.client.is_connected)
        assert daemon.get("/health").status_code == 503


def test_live_is_200_unless_the_daemon_has_given_up(tmp_path: Path) -> None:
    with serving(tmp_path, ready=False) as daemon:
        assert daemon.get("/live").json() == {"status": "alive"}
        assert daemon.get("/ready").status_code == 503
        child_process.report_failure(tmp_path, "the stages fail again and again")
        response = daemon.get("/live")
        assert response.status_code == 503
        assert "the stages fail again and again" in response.json()["error"]["message"]


def test_before_the_engine_is_there_nothing_is_claimed(tmp_path: Path) -> None:
    with serving(tmp_path, ready=False) as daemon:
        assert daemon.get("/health").status_code == 503
        ready = daemon.get("/ready")
        assert ready.status_code == 503
        assert ready.headers["retry-after"] == "1"
        assert daemon.get("/v1/models").json()["data"][0]["max_model_len"] is None
        assert daemon.get("/metrics").status_code == 200


def test_ready_is_200_once_requests_are_taken(daemon: Daemon) -> None:
    # A test before, which has no patience with engines, may have made this one's client lose its.
    daemon.wait_until(lambda: daemon.client.is_ready)
    assert daemon.get("/ready").status_code == 200


def test_the_model_is_listed_with_its_length(daemon: Daemon) -> None:
    (model,) = daemon.get("/v1/models").json()["data"]
    assert isinstance(model.pop("created"), int)
    assert model == {
        "id": MODEL,
        "object": "model",
        "owned_by": "tdpipe",
        "root": MODEL,
        "parent": None,
        "max_model_len": 64,
        "tokenizer_fingerprint": TOKENIZER.fingerprint,
    }
    assert daemon.get(f"/v1/models/{MODEL}").json()["id"] == MODEL


def test_another_model_is_404(daemon: Daemon) -> None:
    response = daemon.get("/v1/models/organisation/other")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_the_load_counts_what_is_open(tmp_path: Path) -> None:
    report = stats(waiting=3, live=5, blocks_used=10, blocks_total=40)
    with serving(tmp_path) as daemon:
        daemon.engine.stats = report
        daemon.engine.introduce()
        daemon.wait_until(lambda: daemon.client.stats == report)
        with daemon.drain.request():
            body = daemon.get("/load").json()
    assert body == {
        "server_load": 1,
        "queued_sequences": 0,
        "waiting_sequences": 3,
        "live_sequences": 5,
        "kv_usage": 0.25,
    }


def test_the_version_is_returned(daemon: Daemon) -> None:
    body = {"version": VERSION, "attention": ["native", "plain"], "batch_invariant": True}
    assert daemon.get("/version").json() == body


def test_the_document_describes_every_route_and_resolves(daemon: Daemon) -> None:
    document = daemon.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/models", "/health", "/metrics"} <= set(document["paths"])
    assert references(document) <= set(document["components"]["schemas"])
    assert "CompletionRequest" in references(document)


def references(value: Any) -> set[str]:
    """The names of all schemas that a part of the document refers to."""
    if isinstance(value, dict):
        own = {value["$ref"].rpartition("/")[2]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()

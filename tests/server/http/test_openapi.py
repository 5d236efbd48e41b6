"""The OpenAPI document matches the server: schemathesis sends valid and invalid requests.

Every answer must have a documented status and body, the events of streams too, nothing may be a
5xx, and what the document rules out must be refused.
"""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.http.middleware import QUIET_PATHS
from tests.server.http.schemathesis_runs import LINE, ask_everything, kept_file, patient_daemon
from tests.server.world import MODEL, Daemon

BATCH = {"endpoint": "/v1/completions", "completion_window": "24h"}


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    with patient_daemon(tmp_path, monkeypatch) as daemon:
        yield daemon


@pytest.fixture
def document(daemon: Daemon) -> dict[str, Any]:
    """The server's own document, with the ids of existing objects."""
    document: dict[str, Any] = daemon.get("/openapi.json").json()
    for body in document["components"]["schemas"].values():
        model = body.get("properties", {}).get("model")
        if body.get("additionalProperties") is False and model:
            may_be_null = "anyOf" in model
            body["properties"]["model"] = {"enum": [MODEL, None] if may_be_null else [MODEL]}
    file_id, spare_file_id = kept_file(daemon), kept_file(daemon)
    batch = BATCH | {"input_file_id": file_id}
    batch_id = daemon.http.post(f"{daemon.url}/v1/batches", json=batch).json()["id"]
    paths = document["paths"]
    give_example(paths["/tokenize"], {"prompt": "hi"})
    give_example(paths["/detokenize"], {"tokens": [5]})
    give_example(paths["/v1/batches"], batch)
    give_example(paths["/v1/files"], {"file": json.dumps(LINE), "purpose": "batch"})
    names = {"file_id": file_id, "batch_id": batch_id, "model": MODEL}
    for operation in (operation for path in paths.values() for operation in path.values()):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                parameter["example"] = names[parameter["name"]]
    paths["/v1/files/{file_id}"]["delete"]["parameters"][0]["example"] = spare_file_id
    return document


def give_example(path: dict[str, Any], body: dict[str, Any]) -> None:
    """Add an example of a body."""
    (content,) = path["post"]["requestBody"]["content"].values()
    content["examples"] = {"one": {"value": body}}


@pytest.mark.parametrize("max_examples", [10, pytest.param(50, marks=pytest.mark.long)])
def test_the_server_answers_as_its_document_says(
    daemon: Daemon,
    document: dict[str, Any],
    max_examples: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tdpipe.access")
    phases = "examples,coverage,fuzzing"
    run = ask_everything(daemon, document, tmp_path, phases=phases, max_examples=max_examples)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [vars(record).get("fields", {}) for record in caplog.records]
    answered = {(line["method"], line["path"]) for line in lines if line.get("status") == 200}
    # The examples are good requests, so it has seen more than refusals, whatever else it asked.
    for path, operations_ in document["paths"].items():
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", path))
        for method in map(str.upper, operations_):
            if path not in QUIET_PATHS:
                assert any(m == method and pattern.fullmatch(p) for m, p in answered), path


@pytest.mark.parametrize(
    ("chunk", "path"),
    [
        ("CompletionChunk", "/v1/completions"),
        ("ChatCompletionChunk", "/v1/chat/completions"),
        ("OutputTextDelta", "/v1/responses"),
    ],
)
def test_an_event_that_is_not_as_documented_would_be_found(
    daemon: Daemon, document: dict[str, Any], tmp_path: Path, chunk: str, path: str
) -> None:
    document["components"]["schemas"][chunk]["required"].append("nowhere")
    run = ask_everything(daemon, document, tmp_path, phases="examples")
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"_ POST {path} _" in run.stdout
    assert "SSE event violates schema" in run.stdout


def test_each_route_is_in_one_described_group_and_has_a_summary(document: dict[str, Any]) -> None:
    groups = {tag["name"]: tag["description"] for tag in document["tags"]}
    operations = [each for path in document["paths"].values() for each in path.values()]
    assert all(operation["summary"] for operation in operations)
    assert {tag for operation in operations for tag in operation["tags"]} == set(groups)
    assert all(len(operation["tags"]) == 1 for operation in operations)
    assert all(groups.values())

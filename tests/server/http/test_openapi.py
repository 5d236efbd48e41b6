"""The OpenAPI document matches the server: schemathesis sends valid and invalid requests.

Every answer must have a documented status and body, the events of streams too, nothing may be a
5xx, and what the document rules out must be refused. The fake engine says "hello world €" to
everything.
"""

import json
import logging
import re
import subprocess
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.http.middleware import QUIET_PATHS
from server.openai.routes import operations
from server.requests import engine_client
from tests.server.templates import QWEN, chatty, with_long_context
from tests.server.world import MODEL, Daemon, saying, serving
from wire.messages import Submit, ToServer

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    # What is well-formed may still be refused, so the opposite is not among the checks.
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
]
FOR_EVER_S = 1e9
UNANSWERED = [7, 7, 7]  # a prompt
LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": MODEL, "prompt": UNANSWERED},
}
BATCH = {"endpoint": "/v1/completions", "completion_window": "24h"}


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A server that chats on a machine of any speed: its engine beats only at the start."""
    for module in (engine_client, operations):
        monkeypatch.setattr(module, "SILENCE_S", FOR_EVER_S)
    tokenizer = chatty(QWEN)
    with serving(tmp_path, answer, tokenizer=tokenizer, heartbeat_timeout=FOR_EVER_S) as daemon:
        yield with_long_context(daemon)


def answer(submit: Submit) -> Iterable[ToServer]:
    """A script: batches of the examples' file do not end by themselves."""
    if submit.prompt_token_ids == array("i", UNANSWERED).tobytes():
        return []
    return saying("hello world €")(submit)


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


def kept_file(daemon: Daemon) -> str:
    """The id of a file with one request."""
    form = {"file": ("in.jsonl", json.dumps(LINE).encode())}
    response = daemon.http.post(f"{daemon.url}/v1/files", data={"purpose": "batch"}, files=form)
    return str(response.json()["id"])


def give_example(path: dict[str, Any], body: dict[str, Any]) -> None:
    """Add an example of a body."""
    (content,) = path["post"]["requestBody"]["content"].values()
    content["examples"] = {"one": {"value": body}}


def ask_everything(
    daemon: Daemon, document: dict[str, Any], folder: Path, *, phases: str, max_examples: int = 1
) -> subprocess.CompletedProcess[str]:
    """Let schemathesis generate requests from the document."""
    file = folder / "openapi.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", daemon.url]
    command += ["--phases", phases, "--checks", ",".join(CHECKS), "--request-timeout", "60"]
    command += ["--max-examples", str(max_examples), "--generation-deterministic", "--no-shrink"]
    command += ["--suppress-health-check", "all", "--warnings", "off"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


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

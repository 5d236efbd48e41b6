"""The OpenAPI document is true: schemathesis asks what it promises, and what it does not.

Every answer must have a documented status and body, nothing may be a 5xx, and what the document
rules out must be refused. The fake engine says "hello world €" to everything.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server import engine_client, operations
from tests.server.world import MODEL, Daemon

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


@pytest.fixture
def document(daemon: Daemon, tmp_path: Path) -> Path:
    """The server's own document, with the model's name where a request has to tell one."""
    schema = daemon.get("/openapi.json").json()
    for body in schema["components"]["schemas"].values():
        model = body.get("properties", {}).get("model")
        if body.get("additionalProperties") is False and model:
            may_be_null = "anyOf" in model
            body["properties"]["model"] = {"enum": [MODEL, None] if may_be_null else [MODEL]}
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(schema))
    return file


def test_the_server_answers_as_its_document_says(
    daemon: Daemon, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fake engine's heart beats only when it is greeted.
    for module in (engine_client, operations):
        monkeypatch.setattr(module, "SILENCE_S", 1e9)
    daemon.engine.introduce()
    daemon.wait_until(lambda: daemon.client.is_ready)
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(document), "--url", daemon.url]
    command += ["--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS)]
    command += ["--max-examples", "40", "--generation-deterministic", "--seed", "1"]
    command += ["--no-shrink", "--suppress-health-check", "all", "--warnings", "off"]
    run = subprocess.run(command, cwd=document.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    metrics = daemon.get("/metrics").text
    answered = re.search(r'tdpipe_requests_total{outcome="success"} (\d+)', metrics)
    assert answered
    assert int(answered[1]) > 20, "or it has only seen refusals"

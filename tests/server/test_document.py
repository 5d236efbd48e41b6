"""The OpenAPI document is true: schemathesis asks what it promises, and what it does not.

Every answer must have a documented status and body, the events of streams too, nothing may be a
5xx, and what the document rules out must be refused. The fake engine says "hello world €" to
everything.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import engine_client, operations
from tests.server.templates import QWEN, chatty
from tests.server.world import MODEL, Daemon, saying, serving

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
SEED = "1"
METHODS = {"get", "post", "delete"}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A server that chats, and whose engine may be as slow as it likes."""
    for module in (engine_client, operations):
        monkeypatch.setattr(module, "SILENCE_S", 1e9)
    script = saying("hello world €")
    with serving(
        tmp_path, script, tokenizer=chatty(QWEN), heartbeat_timeout=1e9, data_dir=tmp_path / "data"
    ) as daemon:
        yield daemon


def kept_file(daemon: Daemon) -> str:
    """The id of a file with one request."""
    line = LINE | {"body": {"model": MODEL, "prompt": "hi"}}
    form = {"file": ("in.jsonl", json.dumps(line).encode())}
    response = daemon.http.post(f"{daemon.url}/v1/files", data={"purpose": "batch"}, files=form)
    return str(response.json()["id"])


def kept_batch(daemon: Daemon, file_id: str) -> str:
    """The id of a batch of that file."""
    body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    return str(daemon.http.post(f"{daemon.url}/v1/batches", json=body).json()["id"])


@pytest.fixture
def document(daemon: Daemon, tmp_path: Path) -> Path:
    """The server's own document, with the names of things that there are."""
    schema = daemon.get("/openapi.json").json()
    components = schema["components"]["schemas"]
    for body in components.values():
        model = body.get("properties", {}).get("model")
        if body.get("additionalProperties") is False and model:
            may_be_null = "anyOf" in model
            body["properties"]["model"] = {"enum": [MODEL, None] if may_be_null else [MODEL]}
    file_id = kept_file(daemon)
    create = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "1h"}
    give_example(schema, "/v1/batches", create)
    give_example(schema, "/tokenize", {"prompt": "hi"})
    give_example(schema, "/detokenize", {"tokens": [5]})
    names = {"file_id": file_id, "batch_id": kept_batch(daemon, file_id), "model": MODEL}
    for operations_ in schema["paths"].values():
        for operation in operations_.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in names:
                    parameter["example"] = names[parameter["name"]]
    # The examples' file stays, because a batch needs it or is to.
    for parameter in schema["paths"]["/v1/files/{file_id}"]["delete"]["parameters"]:
        parameter["example"] = kept_file(daemon)
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(schema))
    return file


def give_example(schema: dict[str, Any], path: str, body: dict[str, Any]) -> None:
    """Show how a body may look."""
    content = schema["paths"][path]["post"]["requestBody"]["content"]
    content["application/json"]["examples"] = {"one": {"value": body}}


def test_the_server_answers_as_its_document_says(
    daemon: Daemon, document: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tdpipe.access")
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(document), "--url", daemon.url]
    command += ["--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS)]
    command += ["--max-examples", "40", "--generation-deterministic", "--seed", SEED]
    command += ["--no-shrink", "--suppress-health-check", "all", "--warnings", "off"]
    command += ["--request-timeout", "60"]
    run = subprocess.run(command, cwd=document.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    succeeded = {
        (record.method.lower(), record.path)
        for record in caplog.records
        if getattr(record, "status", 0) == 200
    }
    print(sorted(succeeded))


def test_a_stream_that_breaks_its_schema_would_be_noticed() -> None:
    pass

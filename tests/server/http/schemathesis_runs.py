"""Runs of schemathesis against a server whose engine says "hello world €" to everything."""

import json
import subprocess
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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


@contextmanager
def patient_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
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


def kept_file(daemon: Daemon) -> str:
    """The id of a file with one request."""
    form = {"file": ("in.jsonl", json.dumps(LINE).encode())}
    response = daemon.http.post(f"{daemon.url}/v1/files", data={"purpose": "batch"}, files=form)
    return str(response.json()["id"])


def ask_everything(
    daemon: Daemon,
    document: dict[str, Any],
    folder: Path,
    *,
    phases: str,
    max_examples: int = 1,
    checks: Sequence[str] = CHECKS,
) -> subprocess.CompletedProcess[str]:
    """Let schemathesis generate requests from the document."""
    file = folder / "openapi.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", daemon.url]
    command += ["--phases", phases, "--checks", ",".join(checks), "--request-timeout", "60"]
    command += ["--max-examples", str(max_examples), "--generation-deterministic", "--no-shrink"]
    command += ["--suppress-health-check", "all", "--warnings", "off"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)

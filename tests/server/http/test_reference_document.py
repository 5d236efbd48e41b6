"""The server answers what OpenAI's own document allows, in the forms that the document promises."""

import logging
from pathlib import Path

import pytest

from tests.server.http.reference_document import reference_document
from tests.server.http.schemathesis_runs import CHECKS, ask_everything, kept_file, patient_daemon
from tests.server.world import MODEL

# What the reference rules out may be taken: unknown fields, for one. Its document is in part here:
# a method that it lacks may be served.
UNCHECKED = {"negative_data_rejection", "unsupported_method", "allow_header_conformance"}


@pytest.mark.parametrize(
    ("phases", "max_examples"),
    [
        ("examples,fuzzing", 40),
        pytest.param("examples,coverage,fuzzing", 300, marks=pytest.mark.long),
    ],
)
def test_answers_have_the_forms_of_the_reference(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phases: str,
    max_examples: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tdpipe.access")
    with patient_daemon(tmp_path, monkeypatch) as daemon:
        file_id = kept_file(daemon)
        body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = daemon.http.post(f"{daemon.url}/v1/batches", json=body).json()
        ids = {"model": MODEL, "file_id": kept_file(daemon), "batch_id": batch["id"]}
        run = ask_everything(
            daemon,
            reference_document([MODEL], ids),
            tmp_path,
            phases=phases,
            max_examples=max_examples,
            checks=[check for check in CHECKS if check not in UNCHECKED],
        )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [vars(record).get("fields", {}) for record in caplog.records]
    answered = {line["path"] for line in lines if line.get("status") == 200}
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/models"):
        assert path in answered, path

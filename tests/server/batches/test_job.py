"""Batches across restarts: a job resumes wherever the previous process was killed."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.batches.world import begin, line, lines, official, read, wait_ended
from tests.server.world import MODEL, TOKENIZER, Daemon, generated, saying, serving
from wire.messages import Finished, Submit


@contextmanager
def server(folder: Path, *args: Any, **settings: Any) -> Iterator[tuple[Daemon, openai.OpenAI]]:
    """One run of a server on the same data."""
    with serving(folder, *args, **settings) as daemon, official(daemon) as client:
        yield daemon, client


def store(folder: Path) -> Path:
    """The folder of files and batches."""
    return folder / "data" / "batches" / MODEL


def edit(folder: Path, batch_id: str, **changes: Any) -> dict[str, Any]:
    """Reset a batch to an earlier state; returns the new record."""
    with closing(sqlite3.connect(store(folder) / "store.sqlite3")) as database, database:
        query = "SELECT document FROM batches WHERE id = ?"
        document = json.loads(database.execute(query, (batch_id,)).fetchone()[0])
        database.execute(
            "UPDATE batches SET is_open = TRUE, document = ? WHERE id = ?",
            (json.dumps(document | changes), batch_id),
        )
        database.execute("DELETE FROM files WHERE purpose = 'batch_output'")
    return dict(document)


def num_written(folder: Path) -> int:
    """The answers on disk."""
    files = (store(folder) / "files").iterdir()
    return sum(path.read_bytes().count(b'{"id":"batch_req_') for path in files)


def answer(daemon: Daemon, submit: Submit) -> None:
    """The answer to "hello"."""
    token_ids = TOKENIZER.encode("hello")
    daemon.engine.send(
        generated(submit.sequence_id, *token_ids), Finished(submit.sequence_id, "length")
    )


def completed(folder: Path, count: int) -> tuple[str, str]:
    """Run a batch to its end; its id and its output file's id."""
    with server(folder, saying("hello")) as (_, client):
        ended = wait_ended(client, begin(client, lines(count)).id)
        assert ended.output_file_id is not None
        return ended.id, ended.output_file_id


def test_after_a_restart_only_unanswered_requests_run(tmp_path: Path) -> None:
    with server(tmp_path) as (daemon, client):
        batch_id = begin(client, lines(5)).id
        for submit in daemon.engine.wait_for(Submit, 5)[:2]:
            answer(daemon, submit)
        daemon.wait_until(lambda: num_written(tmp_path) == 2)
    with server(tmp_path, saying("hello")) as (daemon, client):
        ended = wait_ended(client, batch_id)
        assert len(daemon.engine.wait_for(Submit, 3)) == 3
        assert read(client, ended.output_file_id).keys() == {f"r{i}" for i in range(5)}
        assert ended.request_counts is not None
        assert ended.request_counts.to_dict() == {"total": 5, "completed": 5, "failed": 0}
        assert ended.usage is not None
        assert ended.usage.input_tokens == 10


def test_a_batch_that_was_being_validated_is_validated_again(tmp_path: Path) -> None:
    batch_id, _ = completed(tmp_path, 3)
    edit(tmp_path, batch_id, status="validating", in_progress_at=None)
    with server(tmp_path, saying("hello")) as (_, client):
        assert wait_ended(client, batch_id).status == "completed"


@pytest.mark.parametrize("status", ["finalizing", "in_progress"])
def test_a_batch_killed_on_its_last_step_ends_with_the_same_answers(
    status: str, tmp_path: Path
) -> None:
    batch_id, output_id = completed(tmp_path, 3)
    before = (store(tmp_path) / "files" / output_id).read_text()
    edit(tmp_path, batch_id, status=status, output_file_id=None, completed_at=None)
    with server(tmp_path) as (daemon, client):
        ended = wait_ended(client, batch_id)
        assert (ended.status, ended.output_file_id) == ("completed", output_id)
        assert client.files.content(output_id).text == before
        assert not [m for m in daemon.engine.received if isinstance(m, Submit)]


def test_a_torn_answer_is_run_again(tmp_path: Path) -> None:
    batch_id, output_id = completed(tmp_path, 3)
    path = store(tmp_path) / "files" / output_id
    path.write_bytes(path.read_bytes()[:-5])
    edit(tmp_path, batch_id, status="in_progress", output_file_id=None)
    with server(tmp_path, saying("hello")) as (daemon, client):
        ended = wait_ended(client, batch_id)
        assert read(client, ended.output_file_id).keys() == {"r0", "r1", "r2"}
        assert len(daemon.engine.wait_for(Submit)) == 1


def test_a_batch_killed_while_cancelling_starts_no_request(tmp_path: Path) -> None:
    batch_id, output_id = completed(tmp_path, 3)
    (store(tmp_path) / "files" / output_id).write_bytes(b"")
    edit(tmp_path, batch_id, status="cancelling", ends_as="cancelled", output_file_id=None)
    with server(tmp_path) as (daemon, client):
        ended = wait_ended(client, batch_id)
        assert (ended.status, ended.output_file_id) == ("cancelled", None)
        assert not [m for m in daemon.engine.received if isinstance(m, Submit)]


def test_a_batch_that_expired_meanwhile_has_an_error_for_each_request(
    tmp_path: Path,
) -> None:
    batch_id, output_id = completed(tmp_path, 600)
    path = store(tmp_path) / "files" / output_id
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:200]))
    edit(tmp_path, batch_id, status="in_progress", output_file_id=None, expires_at=1)
    with server(tmp_path) as (daemon, client):
        ended = wait_ended(client, batch_id)
        assert ended.status == "expired"
        done, rest = read(client, ended.output_file_id), read(client, ended.error_file_id)
        assert (len(done), len(rest)) == (200, 400)
        assert done.keys() | rest.keys() == {f"r{i}" for i in range(600)}
        assert not [m for m in daemon.engine.received if isinstance(m, Submit)]


def test_a_batch_that_fails_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.batches.job.RETRY_S", 0.0)
    batch_id, output_id = completed(tmp_path, 3)
    batch = edit(tmp_path, batch_id, status="in_progress", output_file_id=None)
    input_path = store(tmp_path) / "files" / batch["input_file_id"]
    away = input_path.rename(tmp_path / "away")
    with server(tmp_path) as (daemon, client):
        daemon.wait_until(lambda: "failed and will be retried" in caplog.text)
        away.rename(input_path)
        ended = wait_ended(client, batch_id)
        assert (ended.status, ended.output_file_id) == ("completed", output_id)


def test_the_last_requests_start_longest_first(tmp_path: Path) -> None:
    content = "".join(
        line(f"r{i}", max_tokens=number) + "\n" for i, number in enumerate([2, 1, 4, 8, 16])
    )
    with server(tmp_path, saying("hello"), batch_concurrency=1) as (daemon, client):
        assert wait_ended(client, begin(client, content).id).status == "completed"
        begun = [submit.max_tokens for submit in daemon.engine.wait_for(Submit, 5)]
    assert begun == [2, 1, 4, 16, 8]

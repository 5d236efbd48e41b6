"""The batch service: what fails on the disk, or is a bug, costs batches a while and no more."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from server.batches.store import Store
from tests.server.batches.world import begin, contents, lines, official, wait_ended
from tests.server.world import saying, serving


def test_a_sweep_that_fails_costs_no_batch_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.batches.runner.SWEEP_INTERVAL_S", 0.01)
    with serving(tmp_path, saying("hello")) as daemon, official(daemon) as client:
        expired = client.files.create(file=("a", b"a"), purpose="batch").id
        (path,) = tmp_path.glob("data/batches/*/store.sqlite3")
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            refusal = "BEGIN SELECT RAISE(ABORT, 'nothing goes'); END"
            database.execute(f"CREATE TRIGGER nothing_goes BEFORE DELETE ON files {refusal}")
            database.execute("UPDATE files SET expires_at = 1")
            daemon.wait_until(lambda: "nothing goes" in caplog.text)
            assert wait_ended(client, begin(client, lines(3)).id).status == "completed"
            assert expired in contents(tmp_path / "data")
            database.execute("DROP TRIGGER nothing_goes")
        daemon.wait_until(lambda: expired not in contents(tmp_path / "data"))


def test_after_a_bug_batches_are_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.batches.runner.SWEEP_INTERVAL_S", 0.01)
    monkeypatch.setattr("server.batches.service.RETRY_S", 0.01)
    with serving(tmp_path) as daemon, official(daemon) as client:
        batch = begin(client, lines(3))
        daemon.wait_until(lambda: client.batches.retrieve(batch.id).status == "in_progress")

        async def stumble(*_: object) -> None:
            raise KeyError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "delete_expired", stumble)
            daemon.wait_until(lambda: "ended in a bug" in caplog.text)
        daemon.engine.script = saying("hello")
        path = f"/v1/batches/{batch.id}"
        daemon.wait_until(lambda: daemon.get(path).json().get("status") == "completed")

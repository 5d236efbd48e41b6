"""The database: transactions are atomic, and none stays open."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from server.batches.storage.database import Database, DatabaseError
from tests.server.batches.world import refuse_to_commit


def run(folder: Path, work: Callable[[Database], Awaitable[None]]) -> None:
    """Run something with a database."""

    async def main() -> None:
        database = Database(folder / "store.sqlite3")
        await database.open()
        try:
            await work(database)
        finally:
            await database.close()

    asyncio.run(main())


def insert(connection: sqlite3.Connection) -> None:
    """Insert a row."""
    connection.execute("INSERT INTO batches (id, is_open, document) VALUES ('a', TRUE, '{}')")


def count(connection: sqlite3.Connection) -> int:
    """Count the rows."""
    return int(connection.execute("SELECT count(*) FROM batches").fetchone()[0])


def test_a_failed_commit_is_rolled_back_and_the_next_transaction_succeeds(
    tmp_path: Path,
) -> None:
    def insert_in_vain(connection: sqlite3.Connection) -> None:
        insert(connection)
        refuse_to_commit(connection)

    def count_again(connection: sqlite3.Connection) -> int:
        connection.set_authorizer(None)
        return count(connection)

    async def work(database: Database) -> None:
        with pytest.raises(DatabaseError, match="not authorized"):
            await database.run(insert_in_vain)
        assert await database.run(count_again) == 0
        await database.run(insert)
        assert await database.run(count) == 1

    run(tmp_path, work)


def test_work_that_raises_is_rolled_back_and_its_error_is_raised(tmp_path: Path) -> None:
    def insert_and_stumble(connection: sqlite3.Connection) -> None:
        insert(connection)
        raise KeyError("a bug")

    async def work(database: Database) -> None:
        with pytest.raises(KeyError):
            await database.run(insert_and_stumble)
        assert await database.run(count) == 0

    run(tmp_path, work)

"""The database: a transaction is there as a whole or not at all, and never stands open."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from server.batches.storage.database import Database, DatabaseError
from tests.server.batches.world import refuse_to_commit


def run(folder: Path, work: Callable[[Database], Awaitable[None]]) -> None:
    """Do something with a database."""

    async def main() -> None:
        database = Database(folder / "store.sqlite3")
        await database.open()
        try:
            await work(database)
        finally:
            await database.close()

    asyncio.run(main())


def insert(connection: sqlite3.Connection) -> None:
    """Write something."""
    connection.execute("INSERT INTO batches (id, is_open, document) VALUES ('a', TRUE, '{}')")


def count(connection: sqlite3.Connection) -> int:
    """How much was written."""
    return int(connection.execute("SELECT count(*) FROM batches").fetchone()[0])


def test_a_transaction_that_cannot_be_committed_is_undone_and_the_next_one_goes_on(
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


def test_work_that_raises_is_undone_and_its_own_error_comes_through(tmp_path: Path) -> None:
    def insert_and_stumble(connection: sqlite3.Connection) -> None:
        insert(connection)
        raise KeyError("a bug")

    async def work(database: Database) -> None:
        with pytest.raises(KeyError):
            await database.run(insert_and_stumble)
        assert await database.run(count) == 0

    run(tmp_path, work)

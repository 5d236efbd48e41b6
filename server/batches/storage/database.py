"""The database: one SQLite file that only one thread uses."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

BUSY_TIMEOUT_S = 5.0
VERSION = 1

_SCHEMA = """
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    purpose TEXT NOT NULL,
    expires_at INTEGER,
    document TEXT NOT NULL
);
CREATE INDEX expiring_files ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    is_open INTEGER NOT NULL,
    document TEXT NOT NULL
);
CREATE INDEX open_batches ON batches (seq) WHERE is_open;
"""

Result = TypeVar("Result")


class DatabaseError(Exception):
    """The database cannot be used; the message is one line for the user."""


class Database:
    """Documents in two tables; a committed transaction survives crashes and power failures."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open or create the database. Raises `DatabaseError`."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch database")
        await self._call(self._open)

    async def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` in one transaction, and return its result; an exception rolls it back.

        Raises `DatabaseError`, and any exception that `work` raises. If the caller is cancelled,
        `work` either still runs to its end or does not run at all.
        """
        return await self._call(lambda: self._transact(work))

    async def close(self) -> None:
        """Close the database and end the thread."""
        if self._thread is not None:
            await self._call(self._close)
            self._thread.shutdown(wait=False)
            self._thread = None

    async def _call(self, work: Callable[[], Result]) -> Result:
        assert self._thread is not None, "it is open"
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self) -> None:
        try:
            self._connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            # An accepted batch must survive a power failure.
            self._connection.execute("PRAGMA synchronous = FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                message = f"{self._path} has version {version}, this tdpipe supports {VERSION}"
                raise DatabaseError(message)
            if version == 0:
                script = f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"
                self._connection.executescript(script)
        except sqlite3.Error as error:
            self._close()
            raise DatabaseError(f"cannot use {self._path}: {error}") from error
        except DatabaseError:
            self._close()
            raise

    def _transact(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        connection = self._connection
        assert connection is not None, "it is open"
        try:
            with connection:  # ends with COMMIT or ROLLBACK, or with both if COMMIT fails
                connection.execute("BEGIN IMMEDIATE")
                return work(connection)
        except sqlite3.Error as error:
            raise DatabaseError(f"cannot use {self._path}: {error}") from error

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

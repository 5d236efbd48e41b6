"""The store: files and batches in one folder.

    FOLDER/store.sqlite3   their metadata
    FOLDER/files/ID        contents; also the answers of open batches
    FOLDER/uploads/NAME    uploads in progress
    FOLDER/lock            held by the process that uses the folder

A file's content is complete and synced before its row is inserted, and its row is deleted before
its content. So content without a row is a leftover, which is removed when the store is opened.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from server.batches.storage.database import Database, DatabaseError
from server.batches.storage.lifecycle import StoredBatch, new_id
from server.batches.storage.page import read_page
from server.openai.fields.batch import FileObject, Order


class StoreTakenError(Exception):
    """Another process uses this folder; the message is one line for the user."""


class UnknownFileError(Exception):
    """The file does not exist, or no longer exists."""


class FileInUseError(Exception):
    """An open batch needs the file; the message is the batch's id."""


class Store:
    """The files and batches in one folder; all methods must be called from one asyncio loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = folder / "files"
        self._uploads = folder / "uploads"
        self._database = Database(folder / "store.sqlite3")
        self._lock: IO[str] | None = None

    async def open(self) -> None:
        """Lock the folder and remove leftovers.

        Raises `StoreTakenError`, and `DatabaseError` or `OSError` if the folder is unusable.
        """
        for folder in (self.folder, self._files, self._uploads):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        try:
            await self._database.open()
            await self._tidy_up()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the database and unlock the folder."""
        try:
            await self._database.close()
        finally:
            if self._lock is not None:
                self._lock.close()

    def content(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self._files / file_id

    def new_upload(self) -> Path:
        """Return a new path for an upload."""
        return self._uploads / new_id("")

    async def add_file(self, file: FileObject, upload: Path) -> None:
        """Store `upload`, which is complete and synced, as the content of `file`.

        Raises `DatabaseError` or `OSError`, and then leaves nothing of the file.
        """
        content = self.content(file.id)

        def keep(connection: sqlite3.Connection) -> None:
            _insert_file(connection, file)
            _move(upload, content)

        try:
            await self._database.run(keep)
        except (DatabaseError, OSError):
            content.unlink(missing_ok=True)
            raise

    async def file(self, file_id: str, now: int) -> FileObject | None:
        """Return the file; None if it does not exist or has expired."""
        query = "SELECT document FROM files WHERE id = ? AND coalesce(expires_at > ?, TRUE)"
        row = await self._database.run(lambda c: c.execute(query, (file_id, now)).fetchone())
        return FileObject.model_validate_json(row[0]) if row else None

    async def files(
        self,
        now: int,
        *,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> bytes:
        """Return a `FileList` as JSON, in the order of creation. Raises `UnknownCursorError`."""
        where = "coalesce(expires_at > ?, TRUE) AND coalesce(purpose = ?, TRUE)"

        def read(connection: sqlite3.Connection) -> bytes:
            page = read_page(connection, "files", where, (now, purpose), after, limit, order)
            return page.as_list()

        return await self._database.run(read)

    async def delete_file(self, file_id: str) -> bool:
        """Delete a file, and return whether it existed. Raises `FileInUseError`."""

        def delete(connection: sqlite3.Connection) -> bool:
            for batch in _open_batches(connection):
                if batch.input_file_id == file_id:
                    raise FileInUseError(batch.id)
            return bool(connection.execute("DELETE FROM files WHERE id = ?", (file_id,)).rowcount)

        was_there = await self._database.run(delete)
        if was_there:
            await asyncio.to_thread(self.content(file_id).unlink, missing_ok=True)
        return was_there

    async def delete_expired(self, now: int) -> list[str]:
        """Delete expired files that no open batch needs, and return their ids."""

        def delete(connection: sqlite3.Connection) -> list[str]:
            needed = {batch.input_file_id for batch in _open_batches(connection)}
            query = "SELECT id FROM files WHERE expires_at <= ?"
            rows = connection.execute(query, (now,)).fetchall()
            gone = [file_id for (file_id,) in rows if file_id not in needed]
            connection.executemany("DELETE FROM files WHERE id = ?", [(id_,) for id_ in gone])
            return gone

        gone = await self._database.run(delete)
        for file_id in gone:
            await asyncio.to_thread(self.content(file_id).unlink, missing_ok=True)
        return gone

    async def add_batch(self, batch: StoredBatch, max_open: int) -> bool:
        """Add a batch, or return False if `max_open` batches are open already.

        Raises `UnknownFileError` if its input file does not exist or has expired.
        """

        def insert(connection: sqlite3.Connection) -> bool:
            query = "SELECT TRUE FROM files WHERE id = ? AND coalesce(expires_at > ?, TRUE)"
            row = connection.execute(query, (batch.input_file_id, batch.created_at)).fetchone()
            if row is None:
                raise UnknownFileError(batch.input_file_id)
            query = "SELECT count(*) FROM batches WHERE is_open"
            if connection.execute(query).fetchone()[0] >= max_open:
                return False
            connection.execute(
                "INSERT INTO batches (id, is_open, document) VALUES (?, ?, ?)",
                (batch.id, batch.is_open, batch.model_dump_json()),
            )
            return True

        return await self._database.run(insert)

    async def batch(self, batch_id: str) -> StoredBatch | None:
        """Return the batch, or None if it does not exist."""
        return await self._database.run(lambda connection: _batch(connection, batch_id))

    async def batches(
        self, *, after: str | None = None, limit: int = 20
    ) -> tuple[list[StoredBatch], bool]:
        """Return batches, newest first, and whether more follow. Raises `UnknownCursorError`."""
        rows, has_more = await self._database.run(
            lambda connection: read_page(connection, "batches", "TRUE", (), after, limit, "desc")
        )
        return [StoredBatch.model_validate_json(document) for _, document in rows], has_more

    async def open_batches(self) -> list[StoredBatch]:
        """Return the open batches, oldest first."""
        return await self._database.run(_open_batches)

    async def change_batch(
        self,
        batch_id: str,
        change: Callable[[StoredBatch], StoredBatch],
        files: Sequence[FileObject] = (),
    ) -> StoredBatch | None:
        """Apply `change` to the batch and add `files` in one transaction; return the batch."""

        def write(connection: sqlite3.Connection) -> StoredBatch | None:
            before = _batch(connection, batch_id)
            if before is None:
                return None
            batch = change(before)
            if batch is not before:
                connection.execute(
                    "UPDATE batches SET is_open = ?, document = ? WHERE id = ?",
                    (batch.is_open, batch.model_dump_json(), batch_id),
                )
            for file in files:
                _insert_file(connection, file)
            return batch

        if files:
            await asyncio.to_thread(_sync_folder, self._files)
        return await self._database.run(write)

    def _take_lock(self) -> None:
        lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            message = f"another process uses the batches in {self.folder}"
            raise StoreTakenError(message) from error
        self._lock = lock

    async def _tidy_up(self) -> None:
        """Remove the leftovers of a process that was killed."""

        def known(connection: sqlite3.Connection) -> set[str]:
            names = {file_id for (file_id,) in connection.execute("SELECT id FROM files")}
            for batch in _open_batches(connection):
                names |= {batch.output_name, batch.error_name}
            return names

        names = await self._database.run(known)
        for path in [*self._uploads.iterdir(), *self._files.iterdir()]:
            if path.parent == self._uploads or path.name not in names:
                path.unlink(missing_ok=True)


def _insert_file(connection: sqlite3.Connection, file: FileObject) -> None:
    connection.execute(
        "INSERT INTO files (id, purpose, expires_at, document) VALUES (?, ?, ?, ?)",
        (file.id, file.purpose, file.expires_at, file.model_dump_json()),
    )


def _batch(connection: sqlite3.Connection, batch_id: str) -> StoredBatch | None:
    query = "SELECT document FROM batches WHERE id = ?"
    row = connection.execute(query, (batch_id,)).fetchone()
    return StoredBatch.model_validate_json(row[0]) if row else None


def _open_batches(connection: sqlite3.Connection) -> list[StoredBatch]:
    rows = connection.execute("SELECT document FROM batches WHERE is_open ORDER BY seq")
    return [StoredBatch.model_validate_json(document) for (document,) in rows]


def _move(source: Path, target: Path) -> None:
    """Rename a file, and sync the target's folder."""
    source.rename(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

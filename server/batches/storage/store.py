"""The store: files and batches as they are kept in one folder.

    FOLDER/store.sqlite3   what is known of each
    FOLDER/files/ID        contents; also the answers of batches that have not ended
    FOLDER/uploads/NAME    what is still coming in
    FOLDER/lock            held by the one process that works here

A file's content is whole and on the disk before its row is there, and its row is gone before its
content is. So a content without a row is nobody's, and goes when the store is opened.
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
    """Another process works in this folder; the text is one line for the user."""


class UnknownFileError(Exception):
    """There is no such file, or no longer."""


class FileInUseError(Exception):
    """A batch that has not ended needs the file; the text is the batch's id."""


class Store:
    """One folder's files and batches; the methods belong to one asyncio loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = folder / "files"
        self._uploads = folder / "uploads"
        self._database = Database(folder / "store.sqlite3")
        self._lock: IO[str] | None = None

    async def open(self) -> None:
        """Take the folder and tidy it up.

        Raises `StoreTakenError`, and `DatabaseError` or `OSError` where the folder is unusable.
        """
        for folder in (self._folder, self._files, self._uploads):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        try:
            await self._database.open()
            await self._tidy_up()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of the folder."""
        try:
            await self._database.close()
        finally:
            if self._lock is not None:
                self._lock.close()

    def content(self, file_id: str) -> Path:
        """Where a file's content is."""
        return self._files / file_id

    def new_upload(self) -> Path:
        """Where a content that comes in may be written."""
        return self._uploads / new_id("")

    async def add_file(self, file: FileObject, upload: Path) -> None:
        """Keep `upload`, which is whole and on the disk, as the content of `file`.

        Raises `DatabaseError` or `OSError`; nothing is left of the file then.
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
        """The file, unless there is none or its time has come."""
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
        """Files by their creation, a `FileList` as JSON. Raises `UnknownCursorError`."""
        where = "coalesce(expires_at > ?, TRUE) AND coalesce(purpose = ?, TRUE)"

        def read(connection: sqlite3.Connection) -> bytes:
            page = read_page(connection, "files", where, (now, purpose), after, limit, order)
            return page.as_list()

        return await self._database.run(read)

    async def delete_file(self, file_id: str) -> bool:
        """Whether there was such a file. Raises `FileInUseError`."""

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
        """Delete the files whose time has come, unless a batch needs them; their ids."""

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
        """Whether it was taken; not where so many are open already.

        Raises `UnknownFileError` where its input is not, or no longer, there.
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
        """The batch, if there is one."""
        return await self._database.run(lambda connection: _batch(connection, batch_id))

    async def batches(
        self, *, after: str | None = None, limit: int = 20
    ) -> tuple[list[StoredBatch], bool]:
        """Batches, the youngest first, and whether more follow. Raises `UnknownCursorError`."""
        rows, has_more = await self._database.run(
            lambda connection: read_page(connection, "batches", "TRUE", (), after, limit, "desc")
        )
        return [StoredBatch.model_validate_json(document) for _, document in rows], has_more

    async def open_batches(self) -> list[StoredBatch]:
        """What has not ended, the oldest first."""
        return await self._database.run(_open_batches)

    async def change_batch(
        self,
        batch_id: str,
        change: Callable[[StoredBatch], StoredBatch],
        files: Sequence[FileObject] = (),
    ) -> StoredBatch | None:
        """The batch after `change`; `files` come into being at the same moment."""

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
        lock = (self._folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            message = f"another daemon works on the batches in {self._folder}"
            raise StoreTakenError(message) from error
        self._lock = lock

    async def _tidy_up(self) -> None:
        """Remove what a process that was killed has left half done."""

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
    """Rename, so that it lasts."""
    source.rename(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The store: what survives a kill at each point, and what is removed as a leftover."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.batches.storage.database import VERSION, DatabaseError
from server.batches.storage.lifecycle import StoredBatch, new_id
from server.batches.storage.store import FileInUseError, Store, StoreTakenError, UnknownFileError
from server.openai.fields.batch import FileList, FileObject
from tests.server.batches.world import refuse_to_commit

NOW = 1_000


def a_file(**values: object) -> FileObject:
    """A file of ten bytes."""
    given = {"id": new_id("file-"), "bytes": 10, "created_at": NOW, "filename": "a"}
    return FileObject.model_validate(given | {"purpose": "batch"} | values)


def a_batch(file: FileObject) -> StoredBatch:
    """A new batch of this file."""
    return StoredBatch(
        id=new_id("batch_"),
        endpoint="/v1/completions",
        input_file_id=file.id,
        completion_window="24h",
        status="validating",
        created_at=NOW,
        expires_at=NOW + 10,
        output_name=new_id("file-"),
        error_name=new_id("file-"),
    )


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    """The store in this folder."""
    store = Store(folder)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def add(store: Store, file: FileObject) -> FileObject:
    """Store it like an upload."""
    upload = store.new_upload()
    upload.write_bytes(b"0123456789")
    await store.add_file(file, upload)
    return file


def run(folder: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    """Run something in the store."""

    async def main() -> None:
        async with opened(folder) as store:
            await work(store)

    asyncio.run(main())


def test_a_folder_has_one_store(tmp_path: Path) -> None:
    async def work(_: Store) -> None:
        with pytest.raises(StoreTakenError):
            await Store(tmp_path).open()

    run(tmp_path, work)
    run(tmp_path, lambda store: store.open_batches())  # type: ignore[arg-type, return-value]


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    file = a_file()
    batch = a_batch(file)

    async def before(store: Store) -> None:
        await add(store, file)
        assert await store.add_batch(batch, 10)
        store.content(batch.output_name).write_text("answers so far")
        store.new_upload().write_text("half an upload")
        # Killed between the rename and the insert, or between the deletions of row and content.
        store.content(new_id("file-")).write_text("left over")

    async def after(store: Store) -> None:
        names = {path.name for path in tmp_path.glob("files/*")}
        assert names == {file.id, batch.output_name}
        assert not list(tmp_path.glob("uploads/*"))
        assert await store.open_batches() == [batch]
        assert await store.file(file.id, NOW) == file

    run(tmp_path, before)
    run(tmp_path, after)


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    file = a_file()
    batch = a_batch(file)

    async def work(store: Store) -> None:
        await add(store, file)
        await store.add_batch(batch, 10)
        with pytest.raises(DatabaseError):
            await store.change_batch(batch.id, lambda b: b.validated(5, NOW), [file])
        assert await store.batch(batch.id) == batch

    run(tmp_path, work)


def refuse(_: sqlite3.Connection) -> None:
    """Raise the error of an insert on a full disk."""
    raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize("fail", [refuse, refuse_to_commit])
def test_an_upload_leaves_no_content_if_its_row_cannot_be_inserted(
    fail: Callable[[sqlite3.Connection], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(store: Store) -> None:
        with pytest.raises(DatabaseError):
            await add(store, a_file())
        assert not list(tmp_path.glob("files/*"))

    monkeypatch.setattr("server.batches.storage.store._insert_file", lambda c, _: fail(c))
    run(tmp_path, work)


def test_expired_files_are_hidden_at_once_and_deleted_soon(
    tmp_path: Path,
) -> None:
    async def work(store: Store) -> None:
        kept, gone, needed = a_file(), a_file(expires_at=NOW + 5), a_file(expires_at=NOW + 5)
        for file in (kept, gone, needed):
            await add(store, file)
        await store.add_batch(a_batch(needed), 10)
        assert await store.file(gone.id, NOW + 4) == gone
        assert await store.file(gone.id, NOW + 5) is None
        assert FileList.model_validate_json(await store.files(NOW + 5)).data == [kept]
        assert await store.delete_expired(NOW + 5) == [gone.id]
        assert {path.name for path in tmp_path.glob("files/*")} == {kept.id, needed.id}
        with pytest.raises(UnknownFileError):
            await store.add_batch(a_batch(gone), 10)

    run(tmp_path, work)


def test_the_input_of_a_batch_stays_until_it_has_ended(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        file = await add(store, a_file())
        batch = a_batch(file)
        await store.add_batch(batch, 10)
        with pytest.raises(FileInUseError, match=batch.id):
            await store.delete_file(file.id)
        await store.change_batch(batch.id, lambda b: b.failed([], NOW))
        assert await store.delete_file(file.id)
        assert not await store.delete_file(file.id)

    run(tmp_path, work)


def test_the_number_of_open_batches_is_limited(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        file = await add(store, a_file())
        first = a_batch(file)
        assert await store.add_batch(first, 2)
        assert await store.add_batch(a_batch(file), 2)
        assert not await store.add_batch(a_batch(file), 2)
        await store.change_batch(first.id, lambda b: b.failed([], NOW))
        assert await store.add_batch(a_batch(file), 2)

    run(tmp_path, work)


def test_a_database_of_a_later_version_is_not_changed(tmp_path: Path) -> None:
    run(tmp_path, lambda store: add(store, a_file()))  # type: ignore[arg-type, return-value]
    with sqlite3.connect(tmp_path / "store.sqlite3") as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(DatabaseError, match=f"version {VERSION + 1}"):
        run(tmp_path, lambda store: store.open_batches())  # type: ignore[arg-type, return-value]


def test_a_damaged_database_is_one_line_and_opens_after_repair(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.sqlite3"
    path.write_bytes(b"no database" * 1000)

    async def main() -> None:
        store = Store(tmp_path)
        with pytest.raises(DatabaseError, match="not a database"):
            await store.open()
        path.unlink()
        await store.open()
        await store.close()

    asyncio.run(main())

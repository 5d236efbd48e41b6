"""/v1/files through the official client and with hand-written forms."""

import io
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import openai
import pytest

from tests.server.batches.world import contents, lines, official
from tests.server.world import PATIENCE_S, Daemon, saying, serving

CONTENT = "€ one\ntwo\n".encode()
PART = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n'


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with official(daemon) as client:
        yield client


def post(
    daemon: Daemon, body: bytes, kind: str = "multipart/form-data; boundary=x"
) -> httpx.Response:
    """An upload without the client."""
    return daemon.http.post(f"{daemon.url}/v1/files", content=body, headers={"content-type": kind})


def test_a_file_is_read_as_it_was_uploaded(client: openai.OpenAI) -> None:
    file = client.files.create(file=("in €.jsonl", CONTENT), purpose="batch")
    assert file.bytes == len(CONTENT)
    assert (file.purpose, file.status, file.expires_at) == ("batch", "processed", None)
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == CONTENT
    assert client.files.wait_for_processing(file.id).id == file.id


def test_a_file_of_many_chunks_is_complete(client: openai.OpenAI) -> None:
    content = lines(20_000).encode()
    file = client.files.create(file=io.BytesIO(content), purpose="batch")
    assert client.files.content(file.id).content == content


STRANGE_IDS = [
    *("..", ".", "../store.sqlite3", "..%2fstore.sqlite3", "%2e%2e", "%2e%2e%2fstore.sqlite3"),
    *("..%5cstore.sqlite3", "%2fetc%2fpasswd", "//etc/passwd", "file-%0a", "%00", "%ff"),
    "x" * 10_000,
]


@pytest.mark.parametrize("file_id", STRANGE_IDS)
def test_no_files_id_leads_out_of_the_folder(file_id: str, daemon: Daemon) -> None:
    host = daemon.url.removeprefix("http://")
    for suffix in ("", "/content"):
        for method in ("GET", "DELETE"):
            # httpx would normalise the dots.
            with closing(HTTPConnection(host, timeout=PATIENCE_S)) as connection:
                connection.request(method, f"/v1/files/{file_id}{suffix}")
                response = connection.getresponse()
                assert response.status in (404, 405)
                assert b'"error"' in response.read()
    with official(daemon) as client, pytest.raises(openai.NotFoundError):
        client.batches.create(
            endpoint="/v1/completions", completion_window="24h", input_file_id=file_id
        )


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", 'a"; filename="b', "..", "a\\b", ""])
def test_a_files_name_is_reported_and_never_used_as_a_path(name: str, tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, official(daemon) as client:
        before = {path for path in tmp_path.rglob("*") if path.name.startswith("evil")}
        file = client.files.create(file=(name, CONTENT), purpose="batch")
        answer = client.files.content(file.id)
        assert answer.content == CONTENT
        assert "\n" not in answer.response.headers["content-disposition"]
        assert contents(tmp_path / "data") == {file.id}
        assert {path for path in tmp_path.rglob("*") if path.name.startswith("evil")} == before


def test_a_deleted_file_is_removed_from_disk(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, official(daemon) as client:
        file = client.files.create(file=("a", CONTENT), purpose="batch")
        assert contents(tmp_path / "data") == {file.id}
        assert client.files.delete(file.id).deleted
        assert contents(tmp_path / "data") == set()
        for ask in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError, match=file.id):
                ask(file.id)


def test_files_are_listed_in_pages(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, official(daemon) as client:
        made = [client.files.create(file=("a", CONTENT), purpose="batch").id for _ in range(5)]
        assert [file.id for file in client.files.list(limit=2)] == made[::-1]
        assert [file.id for file in client.files.list(limit=2, order="asc")] == made
        assert daemon.get("/v1/files?limit=2").json() == {
            "object": "list",
            "data": [client.files.retrieve(id_).to_dict() for id_ in made[:-3:-1]],
            "first_id": made[4],
            "last_id": made[3],
            "has_more": True,
        }
        page = client.files.list(after=made[2], order="asc")
        assert [file.id for file in page.data] == made[3:]
        assert not page.has_more
        nothing = daemon.get("/v1/files?purpose=batch_output").json()
        assert (nothing["data"], nothing["first_id"], nothing["last_id"]) == ([], "", "")
        with pytest.raises(openai.NotFoundError):
            client.files.list(after="file-0")
        for wrong in ("limit=0", "limit=10001", "order=up"):
            assert daemon.get(f"/v1/files?{wrong}").status_code == 400


def test_a_file_expires(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=("a", CONTENT),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="seconds"):
        client.files.create(
            file=("a", CONTENT),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 60},
        )


def test_other_purposes_are_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Purpose 'vision' is not supported"):
        client.files.create(file=("a", CONTENT), purpose="vision")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "ends too early"),
        (FILE % b"abc", "ends too early"),
        (b"no form at all", "could not parse the form"),
        (FILE % b"abc" + b"--x--\r\n", "'purpose'"),
        (PART % (b"purpose", b"batch") + b"--x--\r\n", "'file'"),
        (PART % (b"purpose", b"batch") + FILE % b"" + b"--x--\r\n", "empty"),
        (PART % (b"purpose", b"batch") + FILE % b"a" + FILE % b"b" + b"--x--\r\n", "one file"),
        (PART % (b"purpose", b"x" * 2000) + b"--x--\r\n", "too long"),
        (PART % (b"a", b"b") * 17 + b"--x--\r\n", "too many fields"),
    ],
)
def test_a_bad_form_is_refused_with_the_reason(body: bytes, words: str, daemon: Daemon) -> None:
    answer = post(daemon, body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_body_that_is_no_form_is_refused(daemon: Daemon) -> None:
    for kind in ("application/json", "multipart/form-data", ""):
        answer = post(daemon, b"{}", kind)
        assert answer.status_code == 400
        assert "multipart/form-data" in answer.json()["error"]["message"]


def test_a_boundary_that_is_too_long_is_refused(daemon: Daemon) -> None:
    response = post(daemon, b"", "multipart/form-data; boundary=" + "x" * 300)
    assert response.status_code == 400
    assert "boundary" in response.json()["error"]["message"]


def test_a_file_that_is_too_large_is_413_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, max_file_bytes=1000) as daemon, official(daemon) as client:
        client.files.create(file=("a", b"x" * 1000), purpose="batch")
        for size in (1001, 200_000):
            with pytest.raises(openai.APIStatusError) as refused:
                client.files.create(file=("a", b"x" * size), purpose="batch")
            assert refused.value.status_code == 413
        assert len(contents(tmp_path / "data")) == 1
        assert not list((tmp_path / "data").glob("batches/*/uploads/*"))


def test_an_upload_leaves_nothing_after_a_disconnect(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        uploads = tmp_path / "data"
        with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
            connection.sendall(
                b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + FILE % b"abc"
            )
            daemon.wait_until(lambda: bool(list(uploads.glob("batches/*/uploads/*"))))
        daemon.wait_until(lambda: not list(uploads.glob("batches/*/uploads/*")))
        assert contents(uploads) == set()


def test_an_upload_that_the_database_cannot_store_is_an_error(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, official(daemon) as client:
        (database,) = tmp_path.glob("data/batches/*/store.sqlite3")
        with closing(sqlite3.connect(database)) as connection:
            full = "BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
            connection.execute(f"CREATE TRIGGER full BEFORE INSERT ON files {full}")
        with pytest.raises(openai.InternalServerError, match="The file cannot be stored"):
            client.files.create(file=("a", CONTENT), purpose="batch")
        assert contents(tmp_path / "data") == set()


def test_a_silent_upload_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.batches.routes.upload.SILENCE_TIMEOUT_S", 0.05)
    with serving(tmp_path) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
            connection.sendall(
                b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            )
            assert b" 408 " in connection.recv(100)


def test_a_second_daemon_on_the_folder_waits_and_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.batches.service.RETRY_S", 0.01)
    data = tmp_path / "data"
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    with ExitStack() as both:
        first = both.enter_context(serving(folders[0], data_dir=data))
        with (
            serving(folders[1], data_dir=data, opens_batches=False) as second,
            official(first) as client,
        ):
            file = client.files.create(file=("a", CONTENT), purpose="batch")
            refused = second.get("/v1/files")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "batches_unavailable"
            both.close()
            second.wait_until(lambda: second.get("/v1/files").status_code == 200)
            assert second.get(f"/v1/files/{file.id}/content").content == CONTENT


def test_a_folder_that_cannot_be_used_does_not_stop_the_rest(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    with serving(tmp_path, saying("hello"), opens_batches=False) as daemon:
        assert daemon.complete().status_code == 200
        assert daemon.get("/v1/files").status_code == 503

"""Ranges of files: RFC 9110's partial answers, whole files, and 416 in the error body."""

import httpx
import pytest

from server.http.errors import ApiError
from server.http.ranges import within
from tests.server.world import Daemon

CONTENT = b'{"custom_id": "a"}\n'
SIZE = len(CONTENT)


@pytest.fixture(scope="module")
def content_url(daemon: Daemon) -> str:
    """The URL of a file's content."""
    files, form = f"{daemon.url}/v1/files", {"purpose": "batch"}
    file_id = daemon.http.post(files, data=form, files={"file": CONTENT}).json()["id"]
    return f"{files}/{file_id}/content"


def read(daemon: Daemon, url: str, asked: str, **headers: str) -> httpx.Response:
    return daemon.http.get(url, headers={"range": asked} | headers)


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-3", CONTENT[:4]),
        ("bytes=4-", CONTENT[4:]),
        ("bytes=-5", CONTENT[-5:]),
        ("bytes=-999", CONTENT),
        ("BYTES = 2-999", CONTENT[2:]),
    ],
)
def test_a_range_is_given(daemon: Daemon, content_url: str, asked: str, part: bytes) -> None:
    response = read(daemon, content_url, asked)
    assert (response.status_code, response.content) == (206, part)
    assert response.headers["content-range"].endswith(f"/{SIZE}")


@pytest.mark.parametrize(
    "asked",
    ["bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-2", "lines=1-2", "bytes=0-1,4-5", "1-2"],
)
def test_anything_but_a_single_range_is_answered_with_the_whole(
    daemon: Daemon, content_url: str, asked: str
) -> None:
    response = read(daemon, content_url, asked)
    assert (response.status_code, response.content) == (200, CONTENT)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=99-120", "bytes=-0"])
def test_a_range_outside_is_416_in_the_error_body(
    daemon: Daemon, content_url: str, asked: str
) -> None:
    response = read(daemon, content_url, asked)
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{SIZE}"
    error = response.json()["error"]
    assert error["code"] == "range_not_satisfiable"
    assert str(SIZE) in error["message"]


def test_a_range_of_another_version_is_answered_with_the_whole(
    daemon: Daemon, content_url: str
) -> None:
    for asked in ("bytes=0-3", "bytes=99-"):
        response = read(daemon, content_url, asked, **{"if-range": '"other"'})
        assert (response.status_code, response.content) == (200, CONTENT)


def test_every_range_of_an_empty_file_is_refused() -> None:
    scope = {"headers": [(b"range", b"bytes=-5")]}
    with pytest.raises(ApiError, match="has 0 bytes"):
        within(scope, 0)


@pytest.mark.parametrize("asked", ["bytes=0-3", "bytes=999999999-", "x", "bytes=5-2"])
def test_the_files_of_the_docs_page_are_sent_whole(daemon: Daemon, asked: str) -> None:
    url = f"{daemon.url}/docs-assets/swagger-ui.css"
    assert read(daemon, url, asked).content == daemon.http.get(url).content

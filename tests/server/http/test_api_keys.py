"""API keys: no request is answered without one, and none is ever revealed."""

import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.http.middleware import ALWAYS_OPEN
from tests.server.world import MODEL, Daemon, saying, serving

KEYS = ["first-key", "second-key"]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A server that requires a key."""
    folder = tmp_path_factory.mktemp("locked")
    with serving(folder, saying("hello"), api_key=KEYS) as daemon:
        yield daemon


def ask(daemon: Daemon, authorization: str | None) -> httpx.Response:
    headers = {} if authorization is None else {"authorization": authorization}
    return daemon.http.get(f"{daemon.url}/v1/models", headers=headers)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_each_key_opens(locked: Daemon, scheme: str, key: str) -> None:
    assert ask(locked, f"{scheme} {key}").status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer first-key,second-key",
        "Bearer first-ke",
        "Bearer first-keyy",
        "Bearer FIRST-KEY",
        "Basic first-key",
        "first-key",
    ],
)
def test_anything_else_is_401_in_the_envelope(locked: Daemon, authorization: str | None) -> None:
    response = ask(locked, authorization)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert error["type"] == "invalid_request_error"
    assert "API key" in error["message"]
    assert response.headers["x-request-id"]


def test_a_key_that_is_no_text_is_401(locked: Daemon) -> None:
    response = locked.http.get(
        f"{locked.url}/v1/models", headers=[(b"authorization", b"Bearer \xff\xfe")]
    )
    assert response.status_code == 401


def test_a_second_authorization_header_does_not_open(locked: Daemon) -> None:
    headers = [("authorization", "Bearer wrong"), ("authorization", "Bearer first-key")]
    assert locked.http.get(f"{locked.url}/v1/models", headers=headers).status_code == 401


def test_all_but_probes_want_a_key(locked: Daemon) -> None:
    with_key = {"authorization": f"Bearer {KEYS[0]}"}
    document = locked.http.get(f"{locked.url}/openapi.json", headers=with_key).json()
    paths = {
        *document["paths"],
        "/docs",
        "/docs-assets/swagger-ui.css",
        "/openapi.json",
        "/nowhere",
    }
    for path in ALWAYS_OPEN:
        assert locked.get(path).status_code == 200
    for path in paths.difference(ALWAYS_OPEN):
        for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
            assert locked.http.request(method, locked.url + path).status_code == 401, path
    for path in ("//health", "/health/", "/health/../v1/models", "/Health"):
        url = httpx.URL(locked.url).copy_with(raw_path=path.encode())
        assert locked.http.get(url).status_code == 401, path
    assert locked.http.get(f"{locked.url}/nowhere", headers=with_key).status_code == 404


def test_the_document_names_the_key_where_it_is_wanted(locked: Daemon) -> None:
    with_key = {"authorization": f"Bearer {KEYS[0]}"}
    document = locked.http.get(f"{locked.url}/openapi.json", headers=with_key).json()
    models = document["paths"]["/v1/models"]["get"]
    assert models["security"] == [{"key": []}]
    assert "401" in models["responses"]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "security" not in document["paths"]["/health"]["get"]


def test_paths_are_open_that_the_settings_open_and_no_others(tmp_path: Path) -> None:
    open_paths = ["/metrics"]
    with serving(tmp_path, api_key=KEYS, open_paths=open_paths, root_path="/llm") as daemon:
        for path in ("/metrics", "/llm/metrics", "/ready", "/llm/ready"):
            assert daemon.get(path).status_code == 200, path
        for path in ("/load", "/version", "/metrics/", "/metricsx", "/llm/v1/models", "/docs"):
            assert daemon.get(path).status_code == 401, path
        with_key = {"authorization": f"Bearer {KEYS[0]}"}
        document = daemon.http.get(f"{daemon.url}/openapi.json", headers=with_key).json()
    assert "security" not in document["paths"]["/metrics"]["get"]
    assert document["paths"]["/load"]["get"]["security"] == [{"key": []}]


def test_an_answer_under_a_key_is_the_same_as_without(locked: Daemon, daemon: Daemon) -> None:
    response = locked.http.post(
        f"{locked.url}/v1/completions",
        json={"model": MODEL, "prompt": "hi"},
        headers={"authorization": f"Bearer {KEYS[1]}"},
    )
    assert response.json()["choices"][0]["text"] == "hello"
    assert "security" not in daemon.get("/openapi.json").json()["paths"]["/v1/models"]["get"]


def test_no_key_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(tmp_path, api_key=["the-secret"], log_level="debug") as daemon:
        ask(daemon, "Bearer the-secret")
        ask(daemon, "Bearer a-wrong-one")
        daemon.wait_until(lambda: caplog.text.count("/v1/models") >= 2)
    assert "the-secret" not in caplog.text
    assert "a-wrong-one" not in caplog.text

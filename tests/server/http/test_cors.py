"""CORS: which origins' pages may send requests, and how others are refused."""

from pathlib import Path

from tests.server.world import MODEL, Daemon, saying, serving

ORIGIN = "https://chat.example.org"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type",
}


def test_without_origins_there_is_no_cors(daemon: Daemon) -> None:
    response = daemon.http.get(f"{daemon.url}/v1/models", headers={"origin": ORIGIN})
    assert "access-control-allow-origin" not in response.headers
    preflight = daemon.http.options(f"{daemon.url}/v1/completions", headers=PREFLIGHT)
    assert preflight.status_code == 405


def test_a_page_of_an_allowed_origin_may_ask(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello"), allowed_origins=[ORIGIN], api_key="key") as daemon:
        url = f"{daemon.url}/v1/completions"
        preflight = daemon.http.options(url, headers=PREFLIGHT)  # browsers send no key with it
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in preflight.headers["access-control-allow-methods"]
        answer = daemon.http.post(
            url,
            json={"model": MODEL, "prompt": "hi"},
            headers={"origin": ORIGIN, "authorization": "Bearer key"},
        )
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-expose-headers"] == "x-request-id, traceresponse"
        refused = daemon.http.post(url, json={}, headers={"origin": ORIGIN})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN, "so that it can read why"


def test_a_page_of_another_origin_may_not(tmp_path: Path) -> None:
    with serving(tmp_path, allowed_origins=[ORIGIN]) as daemon:
        headers = PREFLIGHT | {"origin": "https://evil.example.org"}
        preflight = daemon.http.options(f"{daemon.url}/v1/completions", headers=headers)
        assert preflight.status_code == 400
        assert "access-control-allow-origin" not in preflight.headers
        assert "Origin" in preflight.headers["vary"]
        error = preflight.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "cors_refused")
        assert error["message"] == "Disallowed CORS origin."


def test_every_origin_may_where_all_are_allowed(tmp_path: Path) -> None:
    with serving(tmp_path, allowed_origins="*") as daemon:
        response = daemon.http.get(f"{daemon.url}/v1/models", headers={"origin": "https://any.org"})
        assert response.headers["access-control-allow-origin"] == "*"

"""The app as a whole: what stands before all routes, and the document of them."""

from pathlib import Path

import pytest

from tests.server.world import Daemon, saying, serving


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_under_a_root_path_both_kinds_of_proxies_work(tmp_path: Path, prefix: str) -> None:
    with serving(tmp_path, root_path="/llm", api_key="key") as daemon:
        key = {"authorization": "Bearer key"}
        assert daemon.get(f"{prefix}/health").status_code == 200
        assert daemon.get(f"{prefix}/v1/models").status_code == 401
        url = f"{daemon.url}{prefix}"
        assert daemon.http.get(f"{url}/v1/models", headers=key).status_code == 200
        document = daemon.http.get(f"{url}/openapi.json", headers=key).json()
        assert document["servers"] == [{"url": "/llm"}]
        page = daemon.http.get(f"{url}/docs", headers=key).text
        assert "/llm/openapi.json" in page
        assert "/llm/docs-assets/swagger-ui-bundle.js" in page


def test_the_docs_page_needs_nothing_from_elsewhere(daemon: Daemon) -> None:
    page = daemon.get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text.replace("<!--", "").replace("// ", "")
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs-assets/{asset}" in page.text
        assert daemon.get(f"/docs-assets/{asset}").status_code == 200
    missing = daemon.get("/docs-assets/../pyproject.toml")
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "invalid_request_error"


def test_docs_can_be_switched_off(tmp_path: Path) -> None:
    with serving(tmp_path, disable_fastapi_docs=True) as daemon:
        for path in ("/docs", "/openapi.json", "/docs-assets/swagger-ui.css"):
            assert daemon.get(path).status_code == 404


def test_a_model_has_all_its_names(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello"), served_model_name="one,two") as daemon:
        models = daemon.get("/v1/models").json()["data"]
        assert [model["id"] for model in models] == ["one", "two"]
        assert daemon.get("/v1/models/two").json()["id"] == "two"
        for name in ("one", "two"):
            answer = daemon.complete(model=name)
            assert answer.json()["model"] == "one", "the first name is shown"
            assert '"model":"one"' in daemon.complete(model=name, stream=True).text
        assert daemon.complete(model="three").status_code == 404

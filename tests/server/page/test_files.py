"""The page's files: open to all, complete, and nothing from elsewhere."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path

import pytest

from server.page import files as page_files
from tests.server.world import Daemon, serving

STATIC = files("server.page") / "static"


@pytest.mark.parametrize("names", [page_files.DAEMON, page_files.ROUTER])
def test_all_that_a_page_names_is_served(names: dict[str, str]) -> None:
    served = set(names)
    for path, name in names.items():
        text = (STATIC / name).read_text(encoding="utf-8")
        found = re.findall(r'(?:href|src)="(page/[^"]+)"', text)
        if name.endswith(".js"):
            found += [f"page/{each}" for each in re.findall(r'from "\./([^"]+)"', text)]
        assert set(found) <= served, path


def test_the_page_and_its_files_need_no_key_and_their_data_does(tmp_path: Path) -> None:
    with serving(tmp_path, api_key="secret") as daemon:
        for path in page_files.paths(page_files.DAEMON):
            answer = daemon.get(path)
            assert answer.status_code == 200, path
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("/pipeline/status", "/page/", "/page/daemon.html", "/page"):
            assert daemon.get(path).status_code in (401, 404), path
        assert "little" not in daemon.get("/").text


def test_a_browser_that_has_a_file_does_not_get_it_again(daemon: Daemon) -> None:
    answer = daemon.get("/page/daemon.js")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    again = daemon.http.get(
        f"{daemon.url}/page/daemon.js", headers={"if-none-match": answer.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/llm", "/llm/", "/"])
def test_under_a_root_path_links_are_below_it(tmp_path: Path, path: str) -> None:
    with serving(tmp_path, root_path="/llm", api_key="secret") as daemon:
        assert '<base href="/llm/">' in daemon.get(path).text
        for prefix in ("", "/llm"):
            assert daemon.get(f"{prefix}/page/page.css").status_code == 200


def test_without_a_root_path_links_are_relative_for_proxies_that_strip_one(daemon: Daemon) -> None:
    page = daemon.get("/").text
    assert '<base href="./">' in page
    assert not re.search(r'(?:href|src)="/', page)


def test_nothing_comes_from_elsewhere(daemon: Daemon) -> None:
    for path, name in page_files.DAEMON.items():
        if not name.startswith("uplot/"):
            text = daemon.get(f"/{path}").text.replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text, path


def test_uplot_is_the_release_that_its_note_names() -> None:
    assert "uPlot 1.6.32" in (STATIC / "uplot" / "VERSION.md").read_text()
    script = (STATIC / "uplot" / "uPlot.iife.min.js").read_bytes()
    assert b"(v1.6.32)" in script[:100]
    assert (
        hashlib.sha256(script).hexdigest()
        == "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    )
    assert "MIT" in (STATIC / "uplot" / "LICENSE").read_text()

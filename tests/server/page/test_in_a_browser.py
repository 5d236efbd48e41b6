"""The page in a real browser: what it shows, the key, and that it runs under its own policy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pictures.browser import Browser, find_chromium
from tests.server.world import Daemon, serving, stats

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

STEPS = [
    (stage, step_id, 0 if step_id < 20 else 1, 3, 60, 0.1 * step_id, 0.1 * step_id + 0.08)
    for step_id in range(40)
    for stage in range(2)
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def text_of(browser: Browser, id_: str) -> str:
    return str(browser.run(f"document.getElementById('{id_}').textContent"))


def show(browser: Browser, daemon: Daemon, path: str = "/", **window: Any) -> None:
    """Open the page anew, as a tab that has never been there."""
    browser.open("about:blank")
    browser.problems.clear()
    browser.open(daemon.url + path, **window)


def colours_of_timeline(browser: Browser) -> int:
    """How many colours the canvas of the stages has."""
    script = """(() => {
        const canvas = document.querySelector('#timeline canvas');
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    })()"""
    return int(browser.run(script))


@pytest.mark.parametrize("window", [{}, {"dark": True}, {"width": 360, "height": 740}])
def test_it_shows_the_pipeline(tmp_path: Path, browser: Browser, window: dict[str, Any]) -> None:
    with serving(tmp_path, pipeline_parallel_size=2) as daemon:
        daemon.engine.steps = list(STEPS)
        daemon.engine.send(stats(live=5, waiting=2, blocks_used=10, blocks_total=40, uptime_s=5.0))
        show(browser, daemon, **window)
        browser.wait_for("document.getElementById('kv').textContent === '25 %'")
        browser.wait_for("document.querySelectorAll('canvas').length === 4")
        assert text_of(browser, "model") == "little"
        assert text_of(browser, "state") == "ready"
        assert text_of(browser, "phase") == "decode"
        assert colours_of_timeline(browser) > 4
        is_too_wide = "document.documentElement.scrollWidth > innerWidth"
        assert not browser.run(is_too_wide), "it must not scroll sideways"
        assert not browser.problems


def test_nothing_moves_when_figures_arrive(tmp_path: Path, browser: Browser) -> None:
    with serving(tmp_path, pipeline_parallel_size=2) as daemon:
        show(browser, daemon)
        browser.wait_for("document.getElementById('state').textContent === 'idle'")
        tops = """JSON.stringify([...document.querySelectorAll('section, .tiles div')]
            .map((each) => each.getBoundingClientRect().toJSON()))"""
        before = browser.run(tops)
        daemon.engine.send(stats(live=500, waiting=12345, blocks_used=40, blocks_total=40))
        browser.wait_for("document.getElementById('kv').textContent === '100 %'")
        assert browser.run(tops) == before


def test_it_asks_for_the_key_and_keeps_it_out_of_the_address(
    tmp_path: Path, browser: Browser
) -> None:
    enter = """(() => {
        document.getElementById('key').value = '%s';
        document.querySelector('#key-form button').click();
    })()"""
    with serving(tmp_path, api_key="a-secret") as daemon:
        show(browser, daemon)
        browser.wait_for("!document.getElementById('key-form').hidden")
        assert text_of(browser, "problem") == "The server needs an API key."
        browser.run(enter % "a-wrong-one")
        browser.wait_for("document.getElementById('problem').textContent.includes('refuses')")
        browser.run(enter % "a-secret")
        browser.wait_for("document.getElementById('model').textContent === 'little'")
        assert browser.run("location.href") == f"{daemon.url}/"
        assert "a-secret" not in str(browser.run("document.documentElement.outerHTML"))
        assert browser.run("document.cookie + JSON.stringify(localStorage)") == "{}"
        browser.run("window.isOld = true; location.reload()")
        browser.wait_for("!window.isOld && document.getElementById('model').textContent")
        browser.wait_for("document.getElementById('model').textContent === 'little'")
        browser.run("document.getElementById('forget').click()")
        browser.wait_for("!document.getElementById('key-form').hidden")
        refusals = [each for each in browser.problems if "401" not in each]
        assert not refusals


@pytest.mark.parametrize("path", ["/llm", "/llm/"])
def test_it_works_below_a_root_path(tmp_path: Path, browser: Browser, path: str) -> None:
    with serving(tmp_path, root_path="/llm") as daemon:
        show(browser, daemon, path)
        browser.wait_for("document.getElementById('model').textContent === 'little'")
        assert not browser.problems


def test_it_says_what_is_wrong_and_recovers(tmp_path: Path, browser: Browser) -> None:
    with serving(tmp_path) as daemon:
        show(browser, daemon)
        daemon.engine.send(stats(ready=False, trouble="stage 1 was killed"))
        browser.wait_for("document.getElementById('state').textContent === 'restarting'")
        assert text_of(browser, "problem") == "stage 1 was killed"
        daemon.engine.send(stats())
        browser.wait_for("document.getElementById('state').textContent === 'idle'")
        assert text_of(browser, "problem") == ""
        daemon.engine.beats = False
        browser.wait_for("document.getElementById('state').textContent === 'engine lost'")
    browser.wait_for("document.getElementById('state').textContent === 'not connected'")


def test_the_docs_are_grouped(tmp_path: Path, browser: Browser) -> None:
    with serving(tmp_path) as daemon:
        show(browser, daemon, "/docs")
        groups = "[...document.querySelectorAll('.opblock-tag')].map((each) => each.dataset.tag)"
        browser.wait_for("document.querySelectorAll('.opblock-tag').length")
        expected = ["Generation", "Models", "Tokens", "Files", "Batches", "Operations"]
        assert browser.run(groups) == expected

"""Takes the pictures of docs/page.md: `make pictures`.

A daemon with the demo model answers a load behind a router. The pages and `tdpipe top` are drawn
after more than half a minute of it.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console

from benchmarks.costs.page_cost import loaded
from benchmarks.daemon_run import ROOT, routing, serving
from benchmarks.pictures.browser import Browser, find_chromium
from client.terminal import RemoteDaemon
from client.top.picture import Picture
from client.top.recent import Recent
from client.top.watcher import statuses
from configs.schema.model import DEMO_MODEL

TOP_COLUMNS = 136
SETTLE_S = 45.0
BURSTS = ("--workload=sharegpt:100000", "--scale=0.1", "--burstiness=0.3")
# The demo model needs little of the memory that it would get.
KV_CACHE = "--kv-cache-memory-bytes=3000000"
# Of the page of `tdpipe top`: the terminal of a picture has the colours of most terminals.
_TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #0c0c0c; color: #d8d8d8; width: max-content; }}
pre {{ margin: 12px; font: 13px/1.25 "DejaVu Sans Mono", "Liberation Mono", monospace; }}
</style><pre>{code}</pre>"""


def main(argv: Sequence[str] | None = None) -> int:
    """Take all pictures; returns 1 without chromium."""
    parser = argparse.ArgumentParser("python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="[docs]")
    parser.add_argument("--request-rate", type=float, default=40.0, help="[40 per second]")
    parser.add_argument("--data-dir", type=Path, help="with kernels and costs of a former run")
    options = parser.parse_args(argv)
    flags = [KV_CACHE, "--ttft-slo=5", "--tpot-slo=0.2"]
    if options.data_dir is not None:
        flags.append(f"--data-dir={options.data_dir}")
    program = find_chromium()
    if program is None:
        print("error: chromium is not installed", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="tdpipe-pictures-") as name:
        folder = Path(name)
        with (
            serving(DEMO_MODEL, 2, flags, folder / "daemon") as url,
            routing([url], [f"--data-dir={folder / 'router'}"], folder / "route") as router,
            loaded(router, options.request_rate, *BURSTS),
        ):
            time.sleep(SETTLE_S)
            with Browser(program, folder / "profile") as browser:
                _take_pages(browser, url, options.out)
                _take_top(browser, url, folder, options.out)
                _take_router(browser, router, options.out)
    return 0


def _take_pages(browser: Browser, url: str, out: Path) -> None:
    windows = {"page": (1100, False), "page_dark": (1100, True), "page_narrow": (390, True)}
    for name, (width, dark) in windows.items():
        browser.open(url, width=width, height=870, dark=dark)
        browser.wait_for("document.querySelectorAll('canvas').length === 4")
        time.sleep(2.0)
        browser.picture(out / f"{name}.png", whole=width < 600)
    browser.open(f"{url}/docs", width=1100, height=900)
    browser.wait_for("document.querySelectorAll('.opblock-tag').length")
    time.sleep(1.0)
    browser.picture(out / "api_page.png")
    if browser.problems:
        print("\n".join(browser.problems), file=sys.stderr)


def _take_router(browser: Browser, url: str, out: Path) -> None:
    browser.open(url, width=1100, height=330)
    browser.wait_for("document.querySelectorAll('tbody tr').length")
    browser.picture(out / "router_page.png")


def _take_top(browser: Browser, url: str, folder: Path, out: Path) -> None:
    recent = Recent()
    with RemoteDaemon(url) as daemon:
        for status in islice(statuses(daemon), 4):
            recent.take(status)
    console = Console(
        file=io.StringIO(),
        record=True,
        width=TOP_COLUMNS,
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(Picture(recent))
    page = folder / "top.html"
    page.write_text(
        _TERMINAL.format(code=console.export_html(inline_styles=True, code_format="{code}"))
    )
    browser.open(page.as_uri(), width=940, height=300)
    time.sleep(1.0)
    height = browser.run("Math.ceil(document.documentElement.getBoundingClientRect().height)")
    width = browser.run("Math.ceil(document.body.getBoundingClientRect().width)")
    browser.open(page.as_uri(), width=int(width), height=int(height))
    time.sleep(0.5)
    browser.picture(out / "top.png")


if __name__ == "__main__":
    sys.exit(main())

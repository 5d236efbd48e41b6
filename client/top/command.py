"""`tdpipe top`: watch the pipeline of a running daemon, in a terminal or as lines."""

import os
import sys
import time
from collections.abc import Sequence
from itertools import islice

from rich.console import Console
from rich.live import Live

from client.terminal import (
    FAILED,
    INTERRUPTED,
    DaemonError,
    RemoteDaemon,
    complain,
    connection_parser,
)
from client.top.keys import pressed, single_keys
from client.top.picture import Picture, duration, is_idle, mean_bubble
from client.top.recent import Recent
from client.top.watcher import Watcher, statuses
from wire.pipeline_status import PipelineStatus, Quantiles

LINE_S = 1.0
# Lines between two headings.
HEADING = 20
_KEY_WAIT_S = 0.1
# The columns of lines, and their widths.
_COLUMNS = (
    ("time", 8),
    ("state", 11),
    ("phase", 7),
    ("gen/s", 7),
    ("prompt/s", 8),
    ("open", 5),
    ("queue", 5),
    ("live", 5),
    ("wait", 5),
    ("KV", 4),
    ("bubbles", 7),
    ("TTFT", 7),
    ("TPOT", 7),
)


def main(argv: Sequence[str]) -> int:
    """Watch; return 0, or 1 if the daemon cannot be watched, or 130 after Ctrl-C."""
    flags = connection_parser(
        "top",
        "Watch the pipeline of a running daemon: the last 30 s of its stages, its queue, KV cache "
        "and speed. In a terminal, q ends it and the space bar pauses it; elsewhere it prints a "
        "line each second.",
    )
    flags.add_argument("--once", action="store_true", help="print the picture once, and end")
    options = flags.parse_args(argv)
    try:
        with RemoteDaemon(options.url, options.api_key, options.uds) as daemon:
            if options.once:
                _print_once(daemon)
            elif sys.stdin.isatty() and sys.stdout.isatty():
                _watch(daemon)
            else:
                _print_lines(daemon)
    except DaemonError as error:
        complain(error)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # for example from `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return 0


def _watch(daemon: RemoteDaemon) -> None:
    """Show the picture until q is pressed; a lost daemon is waited for."""
    console, recent, notice, is_paused = Console(), Recent(), "", False
    with (
        single_keys(),
        Live(console=console, screen=True, auto_refresh=False) as live,
        Watcher(daemon) as watcher,
    ):
        while True:
            keys = pressed(_KEY_WAIT_S)
            if "q" in keys or "Q" in keys:
                return
            if " " in keys:
                is_paused = not is_paused
            has_news = bool(keys)
            while not watcher.arrivals.empty():
                arrival = watcher.arrivals.get()
                has_news = True
                if isinstance(arrival, DaemonError):
                    notice = f"{arrival}; trying again"
                else:
                    notice = ""
                    recent.take(arrival)
            if has_news and not is_paused:
                live.update(Picture(recent, notice), refresh=True)


def _print_once(daemon: RemoteDaemon) -> None:
    """Print the picture of the second status: the first one has no steps. Raises `DaemonError`."""
    recent = Recent()
    for status in islice(statuses(daemon), 2):
        recent.take(status)
    Console().print(Picture(recent))


def _print_lines(daemon: RemoteDaemon) -> None:
    """Print a line each second, for ever. Raises `DaemonError`."""
    recent, num_lines, printed_at = Recent(), 0, float("-inf")
    for status in statuses(daemon):
        recent.take(status)
        if status.at - printed_at < LINE_S:
            continue
        printed_at = status.at
        if num_lines % HEADING == 0:
            print("  ".join(f"{name:>{width}}" for name, width in _COLUMNS))
        num_lines += 1
        texts = zip(_cells(recent, status), _COLUMNS, strict=True)
        print("  ".join(f"{text:>{width}}" for text, (_, width) in texts), flush=True)


def _cells(recent: Recent, status: PipelineStatus) -> tuple[str, ...]:
    sample, bubble = recent.sample, mean_bubble(status)
    return (
        time.strftime("%H:%M:%S"),
        "idle" if is_idle(recent) else status.state,
        sample.phase,
        f"{sample.generated_per_s:.0f}",
        f"{sample.prompt_per_s:.0f}",
        str(sample.open_requests),
        str(sample.queued),
        str(sample.live),
        str(sample.waiting),
        f"{sample.kv_usage:.0%}",
        "–" if bubble is None else f"{bubble:.0%}",
        _median(status.first_token_s),
        _median(status.per_token_s),
    )


def _median(quantiles: Quantiles | None) -> str:
    return "–" if quantiles is None else duration(quantiles.p50)

"""The trace and the journal of a real daemon: every step of every stage, and every decision."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from bench.exchange import Address
from bench.results.daemon_figures import Figures, read_settled_figures
from engine.trace.journal import replay
from engine.trace.trace_file import Span, Trace, read_trace
from tests.end_to_end.asking import complete
from tests.end_to_end.daemon import Daemon

NUM_STAGES = 3
NUM_REQUESTS = 12


def settled(daemon: Daemon) -> Figures:
    """The daemon's figures once every stage has reported every step."""
    seen: Figures = {}

    def all_are_reported() -> bool:
        figures = asyncio.run(read_settled_figures(Address.of(daemon.url)))
        assert figures is not None
        seen.update(figures)
        steps = seen["tdpipe_steps_total", ""]
        return all(steps == seen["tdpipe_stage_steps_total", str(s)] for s in range(NUM_STAGES))

    daemon.wait_for(all_are_reported)
    return seen


async def ask_at_once(daemon: Daemon) -> None:
    """Requests of several lengths at the same time; their prefills and decodes take many steps."""
    async with daemon.async_client() as client:
        await asyncio.gather(
            *(
                complete(client, "tdpipe-demo", [7] * (20 + 30 * i), 10 + i)
                for i in range(NUM_REQUESTS)
            )
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where trace and journal are."""
    return tmp_path_factory.mktemp("trace")


@pytest.fixture(scope="module")
def run(folder: Path) -> tuple[Trace, Figures]:
    """The trace of a daemon that has ended, and its figures after the last step."""
    path = folder / "trace.json"
    # td-pipe's steps are pure: all rows are prefills, or all are decodes.
    arguments = ["--policy", "td-pipe", "-pp", str(NUM_STAGES)]
    arguments += ["--max-num-seqs", str(NUM_REQUESTS // 2)]
    arguments += ["--trace", str(path), "--journal", str(folder / "journal")]
    with Daemon(folder, *arguments) as daemon:
        asyncio.run(ask_at_once(daemon))
        figures = settled(daemon)
        figures["phase_s", ""] = daemon.metric("tdpipe_phase_seconds_total")
    return read_trace(path), figures


@pytest.fixture
def tracks(run: tuple[Trace, Figures]) -> list[list[Span]]:
    """Each stage's spans in the file's order."""
    return [[s for s in run[0].spans if s.stage == stage] for stage in range(NUM_STAGES)]


def test_every_step_of_every_stage_is_there_once_and_in_order(
    run: tuple[Trace, Figures], tracks: list[list[Span]]
) -> None:
    num_steps = int(run[1]["tdpipe_steps_total", ""])
    assert num_steps > 10
    for track in tracks:
        assert [span.step_id for span in track] == list(range(num_steps))


def test_all_stages_report_the_same_of_a_step(tracks: list[list[Span]]) -> None:
    for spans in zip(*tracks, strict=True):
        assert len({(span.phase, span.num_rows, span.num_tokens) for span in spans}) == 1
    assert {span.phase for span in tracks[0]} == {"prefill", "decode"}
    prefilled = sum(span.num_rows for span in tracks[0] if span.phase == "prefill")
    assert prefilled >= NUM_REQUESTS


def test_a_stage_never_overlaps_itself(tracks: list[list[Span]]) -> None:
    for track in tracks:
        assert all(span.began_at < span.ended_at for span in track)
        assert all(one.ended_at <= next_.began_at for one, next_ in pairwise(track))


def test_a_step_begins_on_a_stage_after_it_has_ended_on_the_one_before(
    tracks: list[list[Span]],
) -> None:
    for spans in zip(*tracks, strict=True):
        assert all(one.ended_at <= next_.began_at for one, next_ in pairwise(spans))


def test_the_steps_add_up_to_the_busy_seconds(
    run: tuple[Trace, Figures], tracks: list[list[Span]]
) -> None:
    for stage, track in enumerate(tracks):
        busy_s = run[1]["tdpipe_stage_busy_seconds_total", str(stage)]
        seconds = sum(span.ended_at - span.began_at for span in track)
        assert seconds == pytest.approx(busy_s, abs=1e-6 * len(track))  # the file's resolution


def test_busy_and_bubble_seconds_of_every_stage_are_the_seconds_with_work(
    run: tuple[Trace, Figures], tracks: list[list[Span]]
) -> None:
    """All requests came at once, so there is one work period, with a fill and a drain."""
    figures = run[1]
    for stage, track in enumerate(tracks):
        busy_s = figures["tdpipe_stage_busy_seconds_total", str(stage)]
        bubble_s = figures["tdpipe_stage_bubble_seconds_total", str(stage)]
        assert busy_s + bubble_s == pytest.approx(figures["phase_s", ""], abs=1e-3)
        assert bubble_s > sum(after.began_at - one.ended_at for one, after in pairwise(track))
    assert figures["tdpipe_request_queue_time_seconds_count", ""] == NUM_REQUESTS
    assert figures["tdpipe_request_decode_time_seconds_count", ""] == NUM_REQUESTS


def test_the_gauges_come_back_to_zero(run: tuple[Trace, Figures]) -> None:
    gauges = run[0].gauges
    assert [gauge.at for gauge in gauges] == sorted(gauge.at for gauge in gauges)
    last = gauges[-1]
    assert (last.blocks_used, last.waiting, last.live) == (0, 0, 0)
    assert last.blocks_total == run[1]["tdpipe_kv_blocks", ""]


def test_the_journal_replays_to_identical_decisions(
    run: tuple[Trace, Figures], folder: Path
) -> None:
    num_events = replay(folder / "journal")
    assert num_events > max(100, run[1]["tdpipe_steps_total", ""])

"""The stream of the page: what viewers learn, that they cost nothing afterwards, and its end."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from starlette.types import Message

from configs.config import Config
from server.http.drain import Drain
from server.metrics import Metrics
from server.page import status_stream
from server.page.status_stream import PATH, PipelineStatuses
from tests.server.world import Daemon, saying, serving, stats
from wire.messages import StageStats, WatchSteps
from wire.pipeline_status import PipelineStatus


@contextmanager
def watching(daemon: Daemon, **headers: str) -> Iterator[Iterator[PipelineStatus]]:
    """The statuses of one stream."""
    with daemon.http.stream("GET", daemon.url + PATH, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/jsonl"
        decode = msgspec.json.Decoder(PipelineStatus).decode
        yield (decode(line) for line in response.iter_lines())


def first(statuses: Iterator[PipelineStatus], state: str) -> PipelineStatus:
    return next(status for status in statuses if status.state == state)


def test_the_first_status_says_what_is_served_and_has_samples(daemon: Daemon) -> None:
    with watching(daemon) as statuses:
        status = next(statuses)
    assert (status.models, status.num_stages, status.state) == (("little",), 2, "ready")
    assert status.kv_tokens == 40 * 16
    assert status.samples
    assert status.samples[-1].at == status.at


def test_figures_come_from_the_engine_and_requests_from_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, watching(daemon) as statuses:
        daemon.engine.send(stats(waiting=3, live=5, blocks_used=10, blocks_total=40, switches=7))
        body = {"model": "little", "prompt": "hi", "stream": True}
        with httpx.stream("POST", f"{daemon.url}/v1/completions", json=body, timeout=10.0):
            samples = (s for status in statuses for s in status.samples)
            sample = next(s for s in samples if s.open_requests)
    assert (sample.waiting, sample.live, sample.queued, sample.kv_usage) == (3, 5, 1, 0.25)
    assert sample.phase == "decode"


def test_latencies_are_those_of_the_latest_answers(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello world")) as daemon:
        with watching(daemon) as statuses:
            assert next(statuses).first_token_s is None
        assert daemon.complete().status_code == 200
        with watching(daemon) as statuses:
            status = next(statuses)
    assert status.first_token_s is not None
    assert status.per_token_s is not None
    assert 0 < status.first_token_s.p50 == status.first_token_s.p95


def test_steps_are_fetched_while_somebody_watches_and_each_comes_once(tmp_path: Path) -> None:
    with serving(tmp_path, pipeline_parallel_size=2) as daemon:
        daemon.engine.steps = [(0, 7, 0, 3, 60, 0.1, 0.2), (1, 7, 0, 3, 60, 0.2, 0.3)]
        assert not daemon.engine._of(WatchSteps), "nobody watches"
        with watching(daemon) as statuses:
            steps = next(s.steps for s in statuses if s.steps.stages)
            assert (steps.stages, steps.step_ids, steps.phases) == ([0, 1], [7, 7], "pp")
            assert (steps.num_rows, steps.num_tokens) == ([3, 3], [60, 60])
            assert steps.ended_at[0] == pytest.approx(steps.began_at[0] + 0.1)
            daemon.engine.steps.append((0, 8, 1, 2, 2, 0.3, 0.4))
            later = next(s.steps for s in statuses if s.steps.stages)
            assert (later.step_ids, later.phases) == ([8], "d")
            with watching(daemon) as others:  # one who comes later gets the earlier steps, too
                assert next(others).steps.step_ids == [7, 7, 8]


def test_bubbles_are_the_part_of_the_work_without_a_step(tmp_path: Path) -> None:
    def beat(busy_s: float, bubble_s: float, *, exact: bool = True) -> StageStats:
        return StageStats(0, 100, 0.1, 7, 3, busy_s, 1.0, bubble_s, exact)

    with serving(tmp_path) as daemon, watching(daemon) as statuses:
        daemon.engine.send(stats(stages=(beat(1.0, 1.0),)))
        first_ = next(s for s in statuses if len(s.stages) == 1)
        daemon.engine.send(stats(stages=(beat(4.0, 2.0),)))
        status = next(s for s in statuses if s.stages != first_.stages and s.stages[0].bubble)
        assert status.exact_times
        daemon.engine.send(stats(stages=(beat(9.0, 9.0, exact=False),)))
        status = next(s for s in statuses if not s.exact_times)
        assert status.stages[0].bubble is None


@pytest.mark.parametrize("turns", range(6))
def test_a_viewer_that_leaves_at_the_moment_of_an_event_leaves_nothing_behind(turns: int) -> None:
    asked: list[WatchSteps] = []
    client: Any = SimpleNamespace(
        listeners=[],
        ready=None,
        stats=stats(),
        stats_at=1.0,
        is_ready=True,
        is_connected=True,
        num_queued=0,
        ask_steps=asked.append,
    )
    drain, written = Drain(), asyncio.Event()
    statuses = PipelineStatuses(Config(), client, drain, Metrics(model_name="m"))
    client.listeners[0](client.stats)

    async def send(message: Message) -> None:
        if message.get("body"):
            written.set()

    async def leave() -> bool:
        writing = asyncio.create_task(statuses.write(send))
        await asyncio.wait_for(written.wait(), 5.0)
        for _ in range(10):  # until it waits
            await asyncio.sleep(0)
        drain.begin()
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait((writing,), timeout=5.0)
        return writing.cancelled()

    assert asyncio.run(leave())
    assert asked
    assert statuses.num_viewers == 0


def test_it_needs_the_key(tmp_path: Path) -> None:
    with serving(tmp_path, api_key="secret") as daemon:
        assert daemon.get(PATH).status_code == 401
        with watching(daemon, authorization="Bearer secret") as statuses:
            assert next(statuses).state == "ready"


def test_it_says_when_the_stages_are_lost_and_why(daemon: Daemon) -> None:
    with watching(daemon) as statuses:
        daemon.engine.send(stats(ready=False, trouble="stage 1 was killed"))
        assert first(statuses, "restarting").reason == "stage 1 was killed"
        daemon.engine.send(stats())
        assert first(statuses, "ready").samples


def test_before_the_engine_and_while_it_loads(tmp_path: Path) -> None:
    with serving(tmp_path, ready=False) as daemon, watching(daemon) as statuses:
        assert first(statuses, "loading").kv_tokens == 0


def test_an_engine_that_has_stopped_is_told(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, watching(daemon) as statuses:
        assert next(statuses).state == "ready"
        daemon.engine.beats = False
        lost = first(statuses, "engine lost")
        assert next(s for s in statuses if s.samples).samples[-1].state == "engine lost"
        assert not lost.reason


def test_during_the_drain_it_says_so_and_ends_with_it(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, watching(daemon) as statuses:
        body = {"model": "little", "prompt": "hi", "stream": True}
        with httpx.stream("POST", f"{daemon.url}/v1/completions", json=body, timeout=10.0):
            daemon.stop()
            assert first(statuses, "draining")
            assert next(s for s in statuses if s.samples).samples[-1].open_requests == 1
        assert all(status.state == "draining" for status in statuses)


def test_only_so_many_may_watch(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_stream, "MAX_VIEWERS", 1)
    with watching(daemon) as statuses:
        next(statuses)
        refused = daemon.get(PATH)
    assert refused.status_code == 429
    assert "Too many viewers" in refused.json()["error"]["message"]


def test_it_can_be_switched_off_with_the_page(tmp_path: Path) -> None:
    with serving(tmp_path, disable_pipeline_page=True) as daemon:
        for path in (PATH, "/", "/page/page.css"):
            assert daemon.get(path).status_code == 404

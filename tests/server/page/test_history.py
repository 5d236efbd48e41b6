"""The history: samples as the engine reports, rates over a second, quantiles over thirty."""

from types import SimpleNamespace
from typing import Any

import pytest

from server.http.drain import Drain
from server.metrics import Metrics
from server.page.history import PAUSE_S, SILENCE_S, History
from tests.server.world import stats
from wire.messages import EngineReady
from wire.pipeline_status import KEPT_S, Quantiles


class World:
    """A client that a test tells what the engine says, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.metrics = Metrics(model_name="m")
        self.client: Any = SimpleNamespace(
            listeners=[], stats=None, ready=None, is_connected=True, is_ready=True, num_queued=0
        )
        self.history = History(self.client, Drain(), self.metrics, lambda: self.now)

    def report(self, after_s: float = 0.25, **values: Any) -> None:
        """The engine reports, so long after the last time."""
        self.now += after_s
        self.client.stats = stats(**values)
        for listener in self.client.listeners:
            listener(self.client.stats)


def test_rates_are_those_of_the_last_second() -> None:
    world = World()
    for tokens in (0, 1000, 1010, 1020, 1030, 1040):
        world.report(generated_tokens=tokens, prompt_tokens=2 * tokens)
    sample = world.history.samples[-1]
    assert (sample.generated_per_s, sample.prompt_per_s) == (40.0, 80.0)


def test_the_counters_of_a_new_engine_give_no_negative_rate() -> None:
    world = World()
    world.report(engine=1, generated_tokens=1000)
    world.report(engine=2, generated_tokens=10)
    assert world.history.samples[-1].generated_per_s == 0.0


def test_reports_in_quick_succession_are_one_sample() -> None:
    world = World()
    for _ in range(10):
        world.report(0.15 * PAUSE_S)
    assert len(world.history.samples) == 2
    world.client.listeners[0](EngineReady(1, 1, 1, 1))
    assert len(world.history.samples) == 2


def test_samples_are_kept_for_a_while() -> None:
    world = World()
    for _ in range(200):
        world.report()
    assert world.now - world.history.samples[0].at <= KEPT_S
    assert len(world.history.samples_after(world.now - 1.0)) == 4


def test_in_silence_samples_are_taken_by_who_watches() -> None:
    world = World()
    world.report(waiting=3)
    world.history.sample_in_silence()
    assert len(world.history.samples) == 1
    world.now += SILENCE_S
    world.client.is_connected = False
    world.history.sample_in_silence()
    assert (world.history.samples[-1].state, world.history.samples[-1].waiting) == (
        "engine lost",
        0,
    )


@pytest.mark.parametrize(
    ("known", "ready", "expected"),
    [(False, False, "loading"), (True, False, "restarting"), (True, True, "ready")],
)
def test_a_daemon_loads_once_and_restarts_later(known: bool, ready: bool, expected: str) -> None:
    world = World()
    assert world.history.state == "starting"
    world.report()
    world.client.ready = EngineReady(1, 1, 1, 1) if known else None
    world.client.is_ready = ready
    assert world.history.state == expected


def test_quantiles_leave_out_what_is_old() -> None:
    world = World()
    world.metrics.latest_first_tokens.append((world.now - KEPT_S - 1, 50.0))
    assert world.history.first_token_s() is None
    world.metrics.latest_first_tokens.extend((world.now, value / 100) for value in range(101))
    assert world.history.first_token_s() == Quantiles(0.5, 0.95)

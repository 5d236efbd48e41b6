"""The steps that viewers get: asked for in turn, once, and with times of the server's clock."""

from types import SimpleNamespace
from typing import Any

import pytest

from server.page.step_history import PAUSE_S, StepHistory
from tests.server.world import reported, stats
from wire.messages import WatchSteps
from wire.pipeline_status import KEPT_S, Steps

STEP = (0, 7, 1, 3, 60, 0.5, 0.75)


class World:
    """A client that keeps what it is asked, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[int] = []
        self.client: Any = SimpleNamespace(
            stats=stats(engine=1, uptime_s=10.0), stats_at=90.0, ask_steps=self._ask
        )
        self.history = StepHistory(self.client, lambda: self.now)

    def _ask(self, message: WatchSteps) -> None:
        self.asked.append(message.after)

    def ask(self) -> None:
        """Ask, some time after the last question."""
        self.now += PAUSE_S
        self.history.ask()

    def answer(self, after: int, *steps: tuple[int, int, int, int, int, float, float]) -> None:
        self.client.on_steps(reported(after, [STEP] * after + list(steps)))


def test_times_are_of_the_servers_clock() -> None:
    world = World()
    world.ask()
    world.answer(0, STEP)
    assert world.history.after(0) == Steps([0], [7], "d", [3], [60], [80.5], [80.75])


def test_a_delay_of_the_engines_figures_does_not_shift_its_steps() -> None:
    world = World()
    for stats_at in (90.5, 90.0, 92.0):
        world.client.stats_at = stats_at
        world.ask()
    world.answer(0, STEP)
    assert world.history.after(0).began_at == [80.5]


def test_the_next_question_is_about_what_is_new() -> None:
    world = World()
    for _ in range(2):
        world.ask()
        world.answer(world.asked[-1], STEP)
    assert world.asked == [0, 1]
    assert world.history.after(0).step_ids == [7, 7]
    assert world.history.after(1).step_ids == [7]
    assert world.history.after(world.history.newest) == Steps()


def test_an_answer_to_a_question_that_was_asked_twice_counts_once() -> None:
    world = World()
    world.ask()
    world.ask()
    world.answer(0, STEP)
    world.answer(0, STEP)
    assert world.history.after(0).step_ids == [7]


def test_many_viewers_ask_once() -> None:
    world = World()
    world.ask()
    world.history.ask()
    assert world.asked == [0]


def test_a_new_engine_is_asked_for_all_and_an_answer_of_the_old_one_is_dropped() -> None:
    world = World()
    world.ask()
    world.answer(0, STEP)
    world.client.stats = stats(engine=2)
    world.answer(1, STEP)
    assert world.history.newest == 1
    world.ask()
    assert world.asked == [0, 0]


def test_steps_are_forgotten_after_a_while_and_without_viewers() -> None:
    world = World()
    world.ask()
    world.answer(0, STEP)
    world.now += KEPT_S + 1
    world.ask()
    world.answer(1, STEP)
    assert world.history.after(0).step_ids == [7]
    world.history.forget()
    assert world.history.after(0) == Steps()
    world.ask()
    assert world.asked[-1] == 0


@pytest.mark.parametrize("engine", [None, 1])
def test_without_an_engine_nothing_is_asked(engine: int | None) -> None:
    world = World()
    world.client.stats = None if engine is None else stats(engine=engine)
    world.ask()
    assert len(world.asked) == (engine is not None)

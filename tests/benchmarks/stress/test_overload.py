"""Overload: which requests of a run count."""

import threading
from types import SimpleNamespace

import pytest

from benchmarks.stress import overload
from benchmarks.stress.memory import MB
from benchmarks.stress.overload import RAMP_S, Looks, load_of

SECONDS = RAMP_S + 10
PATIENCE_S = 30.0


def request(
    sent_s: float, e2e_s: float | None, error: str | None = None, tokens: int = 5
) -> dict[str, object]:
    """A request as a report has it."""
    fields = {"sent_s": sent_s, "e2e_s": e2e_s, "error": error, "ttft_s": 0.1}
    return fields | {"num_output_tokens": tokens}


def test_answers_count_that_end_between_the_ramp_and_the_end() -> None:
    requests = [
        request(0.0, RAMP_S - 1),
        request(0.0, RAMP_S + 1, tokens=20),
        request(RAMP_S, 9.0, tokens=30),
        request(RAMP_S, 11.0, tokens=40),
    ]
    load = load_of({"requests": requests, "client_cpu_s": 1.0}, 1.0, SECONDS, Looks())
    assert (load.answers_per_s, load.tokens_per_s) == (0.2, 5.0)
    assert (load.num_asked, load.num_refused, load.num_failed) == (4, 0, 0)


def test_refusals_are_no_failures_and_what_is_open_at_the_end_is_neither() -> None:
    requests = [
        request(1.0, 0.01, "HTTP 429: The queue is full"),
        request(1.0, 0.03, "HTTP 429: The queue is full"),
        request(1.0, 0.5, "HTTP 500: lost"),
        request(1.0, SECONDS - 1, "open when the run timed out"),
        request(1.0, None, "not sent"),
    ]
    load = load_of({"requests": requests, "client_cpu_s": 1.0}, 1.0, SECONDS, Looks())
    assert (load.num_refused, load.num_failed) == (2, 1)
    assert load.refusal_s is not None
    assert load.refusal_s["p50"] == pytest.approx(0.02)


class Growing:
    """A process that holds a megabyte more at each look."""

    def __init__(self) -> None:
        self.num_looks = 0
        self.is_seen_enough = threading.Event()

    def memory_info(self) -> SimpleNamespace:
        self.num_looks += 1
        if self.num_looks > 60:
            self.is_seen_enough.set()
        return SimpleNamespace(rss=self.num_looks * MB)


def test_memory_that_grows_from_the_first_third_to_the_last_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    growing = Growing()
    monkeypatch.setattr(overload, "RAMP_S", 0.0)
    monkeypatch.setattr(overload, "LOOK_INTERVAL_S", 0.001)
    monkeypatch.setattr(overload, "process_of", lambda _: growing)
    looks = Looks()
    with looks.running():
        assert growing.is_seen_enough.wait(PATIENCE_S)
    load = load_of({"requests": [], "client_cpu_s": 1.0}, 1.0, SECONDS, looks)
    # Server and engine are looked at in turn; the means are two thirds of all looks apart.
    assert load.growth_mb == pytest.approx(growing.num_looks * 2 / 3, abs=4)

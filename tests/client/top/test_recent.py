"""What `tdpipe top` keeps of the last 30 s, and its columns."""

import pytest

from client.top.recent import Recent
from wire.pipeline_status import KEPT_S, PipelineStatus, Sample, Steps


def status(at: float, *samples: Sample, steps: Steps | None = None) -> PipelineStatus:
    return PipelineStatus(
        at, ("m",), "1", "temporal", "ready", 2, samples=samples, steps=steps or Steps()
    )


def steps(*rows: tuple[int, str, float, float]) -> Steps:
    stages, phases, began_at, ended_at = zip(*rows, strict=True)
    number = len(rows)
    return Steps(
        list(stages),
        list(range(number)),
        "".join(phases),
        [1] * number,
        [1] * number,
        list(began_at),
        list(ended_at),
    )


def test_a_column_has_the_part_of_its_time_that_each_phase_takes() -> None:
    recent = Recent()
    second = steps((0, "p", 70.0, 71.5), (0, "d", 71.75, 72.0), (1, "d", 99.0, 100.5))
    recent.take(status(100.0, steps=second))
    shares = recent.shares(0, 30)
    assert shares[:3] == [{"p": 1.0}, {"p": 0.5, "d": 0.25}, {}]
    assert recent.shares(1, 30)[29] == {"d": 1.0}
    assert sum(map(len, recent.shares(1, 30)[:29])) == 0


def test_a_step_may_begin_before_the_window() -> None:
    recent = Recent()
    recent.take(status(100.0, steps=steps((0, "m", 60.0, 71.0))))
    assert recent.shares(0, 15)[0] == {"m": 0.5}


def test_what_is_older_is_forgotten() -> None:
    recent = Recent()
    recent.take(status(100.0, Sample(100.0, "ready"), steps=steps((0, "p", 99.0, 100.0))))
    recent.take(status(101.0 + KEPT_S, Sample(101.0 + KEPT_S, "ready")))
    assert [sample.at for sample in recent.samples] == [101.0 + KEPT_S]
    assert not recent.spans[0]


def test_a_chart_has_the_peak_of_each_column_and_bridges_columns_without_samples() -> None:
    recent = Recent()
    samples = [Sample(at, "ready", live=live) for at, live in ((71.0, 1), (71.5, 3), (80.0, 2))]
    recent.take(status(100.0, *samples))
    columns = recent.columns("live", 30)
    assert columns[:3] == [None, 3.0, 3.0]
    assert columns[9:] == [3.0, *[2.0] * 20]
    assert recent.sample.live == pytest.approx(2)

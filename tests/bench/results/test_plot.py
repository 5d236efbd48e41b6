"""The picture: it is drawn of any report, also of one without answers."""

from pathlib import Path
from typing import Any

import pytest

from bench.call import Call
from bench.results.plot import PLOT_MARK, SUFFIXES, draw
from bench.results.record import Record
from bench.results.report import describe_request
from bench.results.summary import summarise
from configs.output_files import has_mark
from tests.bench.world import DONE, piece, usage


def report(num_answers: int, targets: dict[str, float] | None = None) -> dict[str, Any]:
    records = [Record(arrival_s=0.0)]
    for i in range(num_answers):
        record = Record(arrival_s=0.0)
        record.send(0.01 * i)
        for step in range(5):
            record.feed(200, piece("a"), 0.1 + 0.01 * i + 0.05 * step)
        record.feed(200, usage(3, 5) + DONE, 1.0)
        record.end(200, 1.0)
        records.append(record)
    calls = [Call("/v1/completions")] * len(records)
    return {
        "summary": summarise(calls, records, 1.0, targets=targets),
        "requests": [describe_request(record) for record in records],
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_marked_as_ours(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{suffix}"
    draw(report(20, {"ttft_s": 0.2}), path, "little")
    assert path.stat().st_size > 5000
    assert has_mark(path, PLOT_MARK)


@pytest.mark.parametrize("num_answers", [0, 1])
def test_a_run_with_hardly_an_answer_is_drawn_too(num_answers: int, tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    draw(report(num_answers), path, "little")
    assert ("no values" in path.read_text()) == (num_answers == 0)

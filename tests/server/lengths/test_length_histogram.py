"""The length histogram: the prior first, then the observed lengths, cell by cell."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.lengths.length_histogram import HistogramError, LengthHistogram, LengthQuery

ANY = st.builds(
    LengthQuery,
    st.sampled_from(["completions", "chat"]),
    st.integers(1, 1 << 20),
    st.integers(1, 1 << 20),
)


def asked(max_tokens: int = 2048, prompt: int = 20, endpoint: str = "completions") -> LengthQuery:
    """A request, by default a short prompt with a large max_tokens."""
    return LengthQuery(endpoint, prompt, max_tokens)


def taught(*seen: tuple[LengthQuery, int]) -> LengthHistogram:
    """A histogram with these observations."""
    histogram = LengthHistogram()
    for one, output_len in seen:
        histogram.observe(one, output_len)
    return histogram


def test_the_first_prediction_is_the_prior() -> None:
    length = LengthHistogram().predict(asked())
    assert 150 < length.mean < 260
    assert 0.8 < length.spread < 1.1


def test_nothing_longer_than_max_tokens_is_expected() -> None:
    length = LengthHistogram().predict(asked(max_tokens=16))
    assert length.mean < 16
    assert LengthHistogram().predict(asked(max_tokens=1)) == (1.0, 0.0)


def test_a_frequent_length_is_expected() -> None:
    length = taught(*[(asked(), 40)] * 500).predict(asked())
    assert length.mean == pytest.approx(40, rel=0.25)
    assert length.spread < 0.5


def test_endpoints_limits_and_prompt_sizes_have_cells_of_their_own() -> None:
    long, short = asked(prompt=1000), asked(prompt=10)
    chat, limited = asked(endpoint="chat"), asked(max_tokens=64)
    lens = {long: 800, short: 12, chat: 200, limited: 60}
    histogram = taught(*[(one, output_len) for _ in range(300) for one, output_len in lens.items()])
    for one, output_len in lens.items():
        assert histogram.predict(one).mean == pytest.approx(output_len, rel=0.6)


def test_an_empty_cell_uses_the_cells_above_it() -> None:
    histogram = taught(*[(asked(prompt=10), 30)] * 300)
    unseen = histogram.predict(asked(prompt=5000)).mean
    assert 25 < unseen < 60


def test_old_observations_are_forgotten() -> None:
    histogram = taught(*[(asked(), 10)] * 5_000, *[(asked(), 1000)] * 10_000)
    assert histogram.predict(asked()).mean > 800


def test_the_sum_over_many_requests_is_about_right() -> None:
    rng = random.Random(5)
    lens = [max(1, round(rng.lognormvariate(4.0, 0.9))) for _ in range(4_000)]
    length = taught(*[(asked(), n) for n in lens]).predict(asked())
    assert length.mean == pytest.approx(sum(lens) / len(lens), rel=0.05)
    assert length.spread == pytest.approx(0.9, abs=0.05)


@given(ANY, st.lists(st.tuples(ANY, st.integers(1, 1 << 21)), max_size=20))
def test_an_expectation_lies_between_one_token_and_max_tokens(
    one: LengthQuery, seen: list[tuple[LengthQuery, int]]
) -> None:
    length = taught(*seen).predict(one)
    assert 1 <= length.mean <= one.max_tokens * (1 + 1e-9)
    assert 0 <= length.spread < 10


def test_it_is_the_same_after_a_restart(tmp_path: Path) -> None:
    histogram, path = taught((asked(), 40), (asked(prompt=900), 7)), tmp_path / "a" / "lengths.json"
    histogram.save(path)
    again = LengthHistogram.load(path)
    for one in (asked(), asked(prompt=900), asked(endpoint="chat")):
        assert again.predict(one) == pytest.approx(histogram.predict(one))
    assert [file.name for file in path.parent.iterdir()] == ["lengths.json"]


def test_without_a_file_it_begins_empty(tmp_path: Path) -> None:
    nothing = LengthHistogram.load(tmp_path / "nothing.json")
    assert nothing.predict(asked()) == LengthHistogram().predict(asked())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"version": 99, "cells": []}',
        '{"version": 1, "cells": [[["a"], {"x": 1}]]}',
        '{"version": 1, "cells": [[["a"], {"900": 1}]]}',
        '{"version": 1, "cells": [1]}',
    ],
)
def test_a_damaged_file_is_reported_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    path.write_text(text)
    with pytest.raises(HistogramError) as caught:
        LengthHistogram.load(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


def test_a_file_holds_no_prompt(tmp_path: Path) -> None:
    taught((asked(), 40)).save(tmp_path / "lengths.json")
    content = json.loads((tmp_path / "lengths.json").read_text())
    assert [key for key, _ in content["cells"]] == [
        [],
        ["completions"],
        ["completions", "12"],
        ["completions", "12", "5"],
    ]

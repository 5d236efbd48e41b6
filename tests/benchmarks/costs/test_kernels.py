"""The benchmark of the kernels, on its smallest problem."""

import re

import pytest

from benchmarks.costs import kernels
from benchmarks.costs.kernels import (
    Problem,
    attention,
    fused,
    linear,
    main,
    measure,
    problems,
    spread_lengths,
)
from tests.kernels import SHARED, shared_library


def test_lengths_differ_and_add_up() -> None:
    lengths = spread_lengths(8086, 32)
    assert len(set(lengths)) > 20
    assert 8086 - 32 <= sum(lengths) <= 8086


def test_a_problem_counts_each_pair_of_tokens_once() -> None:
    problem = Problem("x", heads=3, kv_heads=1, dim=5, rows=[(2, 2), (0, 1)])
    assert problem.num_flops == 4 * (3 + 4 + 1) * 3 * 5


def test_candidates_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    took = measure({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == ["a", "b"] * 3
    assert took.keys() == {"a", "b"}


def test_each_line_has_all_figures() -> None:
    library = shared_library()
    small = Problem("small", 4, 2, 16, [(20, 1), (0, 5)])
    for dtype, cache_dtype in kernels.ATTENTION_TYPES:
        for line in (
            attention(library, small, dtype, cache_dtype, 2),
            linear(library, 3, dtype, 2),
            fused(library, 3, 64, dtype, 2),
        ):
            assert line.count("|") >= 7
            assert not re.search(r"nan|inf", line)


def test_the_tables_are_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared_library()
    monkeypatch.setenv("TDPIPE_DATA_DIR", str(SHARED))
    monkeypatch.setattr(kernels, "problems", lambda: problems()[3:4])
    assert main(["--runs=1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    linears = 2 + len(kernels.ATTENTION_TYPES)
    assert {line.count("|") for line in rows[:linears]} == {8}
    assert {line.count("|") for line in rows[linears : linears + 16]} == {7}
    assert {line.count("|") for line in rows[linears + 16 :]} == {10}
    assert len(rows) == linears + 2 + 14 + 2 + 8

"""The table of virtual stages has a line for each case, and a switch costs what its stages wait."""

import pytest

from benchmarks.virtual import virtual_stages
from engine.trace.trace_file import Span
from wire.messages import Phase


def test_the_table_has_a_line_for_each_workload_and_policy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(virtual_stages, "CASES", {"few": "fixed:3:200:2"})
    assert virtual_stages.main(["--stages", "2"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == rows[0].count("|")
    assert [row.split(" | ")[1] for row in rows] == list(virtual_stages.POLICIES)


def test_a_switch_costs_the_bubbles_before_its_first_steps() -> None:
    def spans(*steps: tuple[int, int, Phase, float, float]) -> list[Span]:
        return [Span(stage, step, phase, 1, 1, b, e) for stage, step, phase, b, e in steps]

    run = spans(
        (0, 0, "prefill", 0, 2),
        (1, 0, "prefill", 2, 4),
        (0, 1, "decode", 5, 6),  # 3 s
        (1, 1, "decode", 6, 7),  # 2 s
        (0, 2, "decode", 7, 8),  # 1 s
        (1, 2, "decode", 8, 9),  # 1 s
        (0, 3, "decode", 90, 91),
        (1, 3, "decode", 91, 92),
    )
    assert virtual_stages.switch_cost_s(run, num_stages=2) == (3 + 2 + 1 + 1) / 2
    assert virtual_stages.switch_cost_s(run[:2], num_stages=2) is None

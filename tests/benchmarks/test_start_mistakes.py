"""The table of start-up mistakes: what was printed, without times, paths and pipes."""

from pathlib import Path

import pytest

from benchmarks import start_mistakes
from benchmarks.start_mistakes import (
    BEGIN,
    DOCUMENT,
    END,
    MISTAKES,
    Mistake,
    Outcome,
    flags,
    make,
    table,
    write,
)


def test_a_mistake_is_reported_by_its_last_line() -> None:
    outcome = make(Mistake("a misspelt flag", flags("--prot", "80")), 1)
    assert outcome.code == 2
    assert outcome.line.startswith("tdpipe: error: unknown flag --prot; did you mean --port?")
    assert not outcome.problems
    assert outcome.seconds[0] > 0


def test_the_port_in_use_is_in_use() -> None:
    (mistake,) = (each for each in MISTAKES if each.what == "a port in use")
    assert "is already in use" in make(mistake, 1).line


def test_the_table_has_a_row_for_each_with_the_median() -> None:
    mistake = Mistake("one", flags())
    rows = table(
        [
            Outcome(mistake, "a | b", 1, [1.0, 9.0, 2.04], [0.1, 0.2, 0.3]),
            Outcome(mistake, "`c`", 2, [0.5], [0.4], ["Traceback"]),
        ]
    ).splitlines()
    assert rows[2:] == [
        "| one | `a \\| b` | 1 | 2.0 | 0.2 |",
        "| one | `` `c` `` (printed Traceback) | 2 | 0.5 | 0.4 |",
    ]


def test_the_document_has_a_row_for_each_mistake() -> None:
    rows = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == [
        each.what for each in MISTAKES
    ]


def test_writing_replaces_the_table_only(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write("new", document)
    assert document.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


def test_a_mistake_that_is_none_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start_mistakes, "MISTAKES", [Mistake("none", flags("--help"))])
    assert start_mistakes.main(["--repeats", "1"]) == 1
    assert "| none |" in capsys.readouterr().out

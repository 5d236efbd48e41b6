"""`make clients`: the scripts' lines become rows, and a failure cannot look like a success."""

import re
from pathlib import Path

import pytest

from benchmarks.clients.__main__ import BEGIN, END, Report, read_report, table, write
from benchmarks.clients.environments import REQUIREMENTS, SCRIPTS, clients

LINES = '{"client": "mine", "version": "1"}\nnoise\n[]\n{"check": "chat", "error": null}\n'


@pytest.mark.parametrize("client", clients())
def test_each_client_has_pinned_requirements_and_a_script(client: str) -> None:
    assert len([*SCRIPTS.glob(f"use_{client}.*")]) == 1
    (pinned,) = REQUIREMENTS.glob(f"{client}.*")
    assert re.search(r"==\d|\"\d", pinned.read_text())


def test_each_script_has_requirements() -> None:
    assert {script.stem.removeprefix("use_") for script in SCRIPTS.glob("use_*")} == set(clients())


def test_the_lines_of_a_script_are_read_between_other_output() -> None:
    report = read_report("file", LINES)
    assert (report.client, report.version, report.errors) == ("mine", "1", {"chat": None})
    assert report.works


def test_a_failed_check_is_in_the_row_and_the_client_does_not_work() -> None:
    report = read_report("file", LINES + '{"check": "tools", "error": "A|B\\nC"}\n')
    assert not report.works
    assert report.row() == "| mine | 1 | chat; tools | tools: A\\|B C |"


def test_a_script_that_says_nothing_does_not_work() -> None:
    assert not Report("silent").works
    assert "no check ran" in table([Report("silent")])


def test_the_table_replaces_the_one_in_the_document(tmp_path: Path) -> None:
    document = tmp_path / "clients.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for rows in ("new", "newer"):
        write(rows, document)
        assert document.read_text() == f"before\n{BEGIN}\n{rows}\n{END}\nafter\n"

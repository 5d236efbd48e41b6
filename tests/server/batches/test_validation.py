"""The validation of whole input files."""

from pathlib import Path

import pytest

from server.batches.storage.lines import Rules
from server.batches.validation import MAX_ERRORS, BadInputError, Validation
from tests.server.batches.world import line, lines
from tests.server.world import MODEL

RULES = Rules({"/v1/completions"}, {MODEL}, 10_000)


def validate(folder: Path, content: str, max_requests: int = 1000) -> int:
    """Validate a file; the number of its requests."""
    path = folder / "in.jsonl"
    path.write_text(content)
    validation = Validation(path, RULES, max_requests)
    validation.run()
    return validation.num_requests


def faults(folder: Path, content: str, max_requests: int = 1000) -> list[tuple[int | None, str]]:
    """Line and code of each error."""
    with pytest.raises(BadInputError) as refused:
        validate(folder, content, max_requests)
    return [(error.line, error.code) for error in refused.value.errors]


def test_requests_are_counted_and_blank_lines_are_not(tmp_path: Path) -> None:
    assert validate(tmp_path, lines(500)) == 500
    assert validate(tmp_path, f"\n{line('a')}\n\n{line('b')}") == 2


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    assert faults(tmp_path, "\n \n") == [(None, "empty_file")]


def test_the_number_of_requests_is_limited(tmp_path: Path) -> None:
    assert validate(tmp_path, lines(7), max_requests=7) == 7
    assert faults(tmp_path, lines(8), max_requests=7) == [(8, "too_many_requests")]


def test_every_repetition_is_named_in_the_order_of_lines(tmp_path: Path) -> None:
    content = "\n".join([line("a"), line("b"), "", line("a"), "{broken", line("b"), line("a")])
    assert faults(tmp_path, content) == [
        (4, "duplicate_custom_id"),
        (5, "invalid_json_line"),
        (6, "duplicate_custom_id"),
        (7, "duplicate_custom_id"),
    ]


def test_the_number_of_errors_is_limited(tmp_path: Path) -> None:
    assert len(faults(tmp_path, "{broken\n" * 500)) == MAX_ERRORS
    assert len(faults(tmp_path, (line("a") + "\n") * 500)) == MAX_ERRORS


def test_a_line_that_is_too_long_is_one_error_and_the_next_is_read(tmp_path: Path) -> None:
    content = "\n".join([line("a", "x" * 30_000), line("b"), line("c", nonsense="x" * 10_000)])
    assert faults(tmp_path, content) == [(1, "line_too_long"), (3, "line_too_long")]

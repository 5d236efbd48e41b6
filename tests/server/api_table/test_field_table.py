"""The tables in docs/api.md are those that the code writes."""

import re

from configs.document_tables import has_table
from server.api_table.field_table import DOCUMENT, TARGET, table


def test_the_document_has_the_current_tables() -> None:
    assert has_table(DOCUMENT, TARGET, table()), "make api-table writes it"


def test_every_line_of_a_table_has_four_cells() -> None:
    lines = [line for line in table().splitlines() if line.startswith("|")]
    assert len(lines) > 100
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 5, line


def test_fields_of_both_endpoints_are_listed_once() -> None:
    both, completions, *_ = re.split("^### .*$", table(), flags=re.MULTILINE)[1:]
    assert "| `seed` |" in both
    assert "| `seed` |" not in completions
    assert "| `suffix` |" in completions

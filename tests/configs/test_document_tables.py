"""Tables in documents: what stands around them stays."""

from pathlib import Path

import pytest

from configs.document_tables import cell, has_table, write_table

TEXT = "# Title\n\n<!-- make a: begin -->\nold\n<!-- make a: end -->\n\n<!-- make b: begin -->\n"


def test_only_the_table_of_the_target_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(TEXT)
    write_table(document, "a", "new\n")
    assert document.read_text() == TEXT.replace("old\n", "new\n")
    assert has_table(document, "a", "new\n")
    assert not has_table(document, "a", "old\n")


def test_a_document_without_the_place_of_a_table_is_an_error(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(TEXT)
    with pytest.raises(ValueError, match="unpack"):
        write_table(document, "b", "new\n")
    assert document.read_text() == TEXT


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert cell("a|b") == "a\\|b"

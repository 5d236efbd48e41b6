"""Tables in documents that the code writes: each stands between two comments with its target."""

from pathlib import Path

DOCUMENTS = Path(__file__).resolve().parents[1] / "docs"


def write_table(document: Path, target: str, table: str) -> None:
    """Replace the table of `make TARGET` in the document."""
    before, rest = document.read_text().split(_begin(target))
    _, after = rest.split(_end(target))
    document.write_text(f"{before}{_begin(target)}{table}{_end(target)}{after}")


def has_table(document: Path, target: str, table: str) -> bool:
    """Whether the document has this table of `make TARGET`."""
    return _begin(target) + table + _end(target) in document.read_text()


def cell(text: str) -> str:
    """The text as a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _begin(target: str) -> str:
    return f"<!-- make {target}: begin -->\n"


def _end(target: str) -> str:
    return f"<!-- make {target}: end -->\n"

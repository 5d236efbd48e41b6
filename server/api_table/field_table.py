"""Writes the tables of fields in docs/api.md: `make api-table`."""

import sys
from collections.abc import Iterator

from configs.document_tables import DOCUMENTS, cell, write_table
from server.api_table.api_fields import BODIES, CHAT, COMPLETION, ApiBody, FieldRow
from server.openai.fields.batch import BatchList, FileList

DOCUMENT, TARGET = DOCUMENTS / "api.md", "api-table"


def table() -> str:
    """The tables as Markdown, one for each body."""
    return "\n".join(line for lines in (_both(), *map(_lines, BODIES)) for line in lines)


def _both() -> Iterator[str]:
    yield "### Both `POST /v1/completions` and `POST /v1/chat/completions`\n"
    of_chat = set(CHAT.rows())
    yield from _printed([row for row in COMPLETION.rows() if row in of_chat])


def _lines(body: ApiBody) -> Iterator[str]:
    yield f"### {body.title}\n"
    if body.note:
        yield f"{body.note}\n"
    repeated = {row for other in BODIES if other.model in body.beside for row in other.rows()}
    rows = [row for row in body.rows() if row not in repeated]
    if body.model in (FileList, BatchList):  # their elements have a table of their own
        rows = [row for row in rows if not row.path.startswith("data[]")]
    yield from _printed(rows)


def _printed(rows: list[FieldRow]) -> Iterator[str]:
    yield "| field | origin | support | description |\n|---|---|---|---|"
    for path, owner, status, words in rows:
        yield f"| `{path}` | {owner} | {status} | {cell(words)} |"
    yield ""


def main() -> int:
    """Write the tables into the document."""
    write_table(DOCUMENT, TARGET, table())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The table of fields in docs/api.md, made from the request bodies: `make api-table`."""

import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from server.batches.batch_routes import CreateBatch
from server.body import Body
from server.chat_protocol import ChatRequest
from server.protocol import CompletionRequest

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "api.md"
BEGIN, END = "<!-- make api-table: begin -->\n", "<!-- make api-table: end -->\n"
BODIES: dict[str, type[Body]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/batches": CreateBatch,
}


def table() -> str:
    """Markdown, a table for each body."""
    return "\n".join(line for path, body in BODIES.items() for line in _lines(path, body))


def status_of(field: FieldInfo) -> str:
    """Whether a field is supported, ignored or refused: its description says so."""
    words = field.description or ""
    if "not supported" in words:
        return "refused"
    return "ignored" if "ignored" in words else "supported"


def _lines(path: str, body: type[Body]) -> Iterator[str]:
    yield f"### `POST {path}`\n"
    yield "| field | of | is | |\n|---|---|---|---|"
    for name, field in sorted(body.model_fields.items()):
        words = (field.description or "").replace("|", "\\|")
        owner, words = _owner(words)
        yield f"| `{name}` | {owner} | {status_of(field)} | {words} |"
    yield ""


def _owner(words: str) -> tuple[str, str]:
    """Whose field it is, and the rest of what is said of it."""
    for owner, mark in (("vLLM", "vLLM's"), ("tdpipe", "ours")):
        if words.startswith(mark):
            return owner, words.removeprefix(mark).lstrip(",:; ")
    return "OpenAI", words


def main() -> int:
    """Write the tables into the document."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}{table()}{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

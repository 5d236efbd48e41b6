"""The table of fields in docs/api.md, made from the models of the API: `make api-table`."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel

from server.batches.batch_routes import CreateBatch
from server.batches.objects import (
    Batch,
    BatchList,
    BatchQuery,
    FileDeleted,
    FileList,
    FileObject,
    FileQuery,
    InputLine,
    OutputLine,
    UploadForm,
)
from server.chat_answer import ChatCompletion, ChatCompletionChunk
from server.chat_protocol import ChatRequest
from server.protocol import Completion, CompletionChunk, CompletionRequest, ErrorBody, ModelList
from server.schema_fields import SchemaField, fields_of

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "api.md"
BEGIN, END = "<!-- make api-table: begin -->\n", "<!-- make api-table: end -->\n"

Status = Literal["supported", "refused", "ignored", "not sent"]


class Row(NamedTuple):
    """A field by its path; `owner` is whose field it is."""

    path: str
    owner: str
    status: Status
    words: str


@dataclass(frozen=True)
class Body:
    """A model of the API, as it stands in the table.

    `lacks` has the fields of OpenAI's that the model leaves out, each with what is to be said of
    it. Rows that one of the bodies in `beside` has as well are not told again.
    """

    title: str
    model: type[BaseModel]
    is_answer: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[type[BaseModel], ...] = ()
    note: str = ""

    def rows(self) -> list[Row]:
        """All fields in the order of the alphabet; one that is refused is not opened."""
        mode: Literal["serialization", "validation"]
        mode = "serialization" if self.is_answer else "validation"
        rows: list[Row] = []
        for known in fields_of(self.model, mode):  # parents come first
            rows.append(_row(known, rows, is_answer=self.is_answer))
        status: Status = "not sent" if self.is_answer else "refused"
        rows += [Row(path, "OpenAI", status, words) for path, words in self.lacks.items()]
        closed = tuple(f"{row.path}{end}" for row in rows if _is_closed(row) for end in ".[")
        return sorted(row for row in rows if not row.path.startswith(closed))


_TEXT_ONLY = "this server reads text"
_NOT_COUNTED = {
    "usage.prompt_tokens_details": "what comes from the cache is not counted by request"
}
_USAGE = _NOT_COUNTED | {"usage.completion_tokens_details": "all of it is text"}
_CHAT_USAGE = _NOT_COUNTED | {
    f"usage.completion_tokens_details.{name}": words
    for name, words in {
        "accepted_prediction_tokens": "predictions are ignored",
        "rejected_prediction_tokens": "predictions are ignored",
        "audio_tokens": "answers are text",
        "text_tokens": "answers are text",
    }.items()
}
_SPOKEN = {"audio": "answers are text", "function_call": "see tool_calls"}

COMPLETION = Body(
    "`POST /v1/completions`", CompletionRequest, beside=(ChatRequest,), note="Beside those of both:"
)
CHAT = Body(
    "`POST /v1/chat/completions`",
    ChatRequest,
    beside=(CompletionRequest,),
    note="Beside those of both:",
    lacks={
        "messages[].content[].image_url": _TEXT_ONLY,
        "messages[].content[].input_audio": _TEXT_ONLY,
        "messages[].content[].file": _TEXT_ONLY,
    },
)
BODIES = (
    COMPLETION,
    CHAT,
    Body("A completion", Completion, is_answer=True, lacks=_USAGE),
    Body(
        "A chunk of a completion",
        CompletionChunk,
        is_answer=True,
        lacks=_USAGE,
        beside=(Completion,),
        note="As the completion, but for:",
    ),
    Body(
        "A chat completion",
        ChatCompletion,
        is_answer=True,
        lacks=_CHAT_USAGE
        | {f"choices[].message.{name}": words for name, words in _SPOKEN.items()}
        | {
            "choices[].message.tool_calls[].custom": "tools are functions",
            "metadata": "nothing is stored",
            "moderation": "nothing is moderated",
        },
    ),
    Body(
        "A chunk of a chat completion",
        ChatCompletionChunk,
        is_answer=True,
        lacks=_CHAT_USAGE
        | {f"choices[].delta.{name}": words for name, words in _SPOKEN.items()}
        | {
            "choices[].delta.refusal": "a refusal is content",
            "moderation": "nothing is moderated",
            "obfuscation": "nothing is padded",
        },
        beside=(ChatCompletion,),
        note="As the chat completion, but for:",
    ),
    Body("`POST /v1/files`", UploadForm, note="A form (multipart/form-data):"),
    Body("`GET /v1/files`", FileQuery, note="In the query:"),
    Body("A file", FileObject, is_answer=True),
    Body("A list of files", FileList, is_answer=True, note="Each of `data` is a file."),
    Body("A deleted file", FileDeleted, is_answer=True),
    Body("`POST /v1/batches`", CreateBatch),
    Body("`GET /v1/batches`", BatchQuery, note="In the query:"),
    Body("A batch", Batch, is_answer=True, note="All times are Unix seconds, null until then."),
    Body("A list of batches", BatchList, is_answer=True, note="Each of `data` is a batch."),
    Body("A line of a batch's input", InputLine),
    Body("A line of a batch's output, or of its errors", OutputLine, is_answer=True),
    Body(
        "A list of models",
        ModelList,
        is_answer=True,
        lacks={"data[].shutdown_date": "nobody knows"},
        note="Each of `data` is what `GET /v1/models/{id}` answers.",
    ),
    Body("An error", ErrorBody, is_answer=True),
)


def table() -> str:
    """Markdown, a table for each body."""
    return "\n".join(line for lines in (_both(), *map(_lines, BODIES)) for line in lines)


def _both() -> Iterator[str]:
    yield "### Both `POST /v1/completions` and `POST /v1/chat/completions`\n"
    of_chat = set(CHAT.rows())
    yield from _printed([row for row in COMPLETION.rows() if row in of_chat])


def _lines(body: Body) -> Iterator[str]:
    yield f"### {body.title}\n"
    if body.note:
        yield f"{body.note}\n"
    told = {row for other in BODIES if other.model in body.beside for row in other.rows()}
    rows = [row for row in body.rows() if row not in told]
    if body.model in (FileList, BatchList):  # of what has a table of its own
        rows = [row for row in rows if not row.path.startswith("data[]")]
    yield from _printed(rows)


def _printed(rows: list[Row]) -> Iterator[str]:
    yield "| field | of | is | |\n|---|---|---|---|"
    for path, owner, status, words in rows:
        yield f"| `{path}` | {owner} | {status} | {words.replace('|', chr(92) + '|')} |"
    yield ""


def _row(known: SchemaField, before: list[Row], *, is_answer: bool) -> Row:
    owner, words = _owner(known.words)
    parents = (
        row.owner for row in before if known.path.startswith((row.path + ".", row.path + "["))
    )
    owner = next((parent for parent in parents if parent != "OpenAI"), owner)
    values = ", ".join(f"`{value}`" for value in known.values)
    status: Status = "supported" if is_answer else _status(words)
    return Row(known.path, owner, status, ": ".join(filter(None, (values, words))))


def _status(words: str) -> Status:
    """Whether a field of a request is supported, ignored or refused: its description says so."""
    if "not supported" in words:
        return "refused"
    return "ignored" if "ignored" in words else "supported"


def _owner(words: str) -> tuple[str, str]:
    """Whose field it is, and the rest of what is said of it."""
    for owner, mark in (("vLLM", "vLLM's"), ("tdpipe", "ours")):
        if words.startswith(mark):
            return owner, words.removeprefix(mark).lstrip(",:; ")
    return "OpenAI", words


def _is_closed(row: Row) -> bool:
    return row.status != "supported"


def main() -> int:
    """Write the tables into the document."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}{table()}{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

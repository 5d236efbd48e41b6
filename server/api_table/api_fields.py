"""The fields of the API: every field of requests and responses, with its origin and support.

Fields that this server accepts or sends are read from their pydantic models; fields that only
OpenAI has are listed here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import BaseModel

from server.api_table.schema_fields import fields_of
from server.http.errors import ErrorBody
from server.openai.fields.batch import (
    Batch,
    BatchList,
    BatchQuery,
    CreateBatch,
    FileDeleted,
    FileList,
    FileObject,
    FileQuery,
    InputLine,
    OutputLine,
    UploadForm,
)
from server.openai.fields.chat import ChatRequest
from server.openai.fields.chat_answer import ChatCompletion, ChatCompletionChunk
from server.openai.fields.completion import (
    Completion,
    CompletionChunk,
    CompletionRequest,
    ModelList,
)
from server.openai.fields.responses import ResponsesRequest
from server.openai.fields.responses_answer import ResponseObject

Status = Literal["supported", "refused", "ignored", "not sent"]


class FieldRow(NamedTuple):
    """A field by its path; `owner` is its origin: OpenAI, vLLM or tdpipe."""

    path: str
    owner: str
    status: Status
    words: str

    def holds(self, path: str) -> bool:
        """Whether a field is inside this one."""
        return path.startswith((f"{self.path}.", f"{self.path}["))


@dataclass(frozen=True)
class ApiBody:
    """One request or response body.

    `lacks` has OpenAI's fields that the model does not have, each with a remark. Rows that a body
    in `beside` has too are not repeated.
    """

    title: str
    model: type[BaseModel]
    is_answer: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[type[BaseModel], ...] = ()
    note: str = ""

    def rows(self) -> list[FieldRow]:
        """All fields in alphabetical order, without those inside a field that is not supported."""
        rows: list[FieldRow] = []
        for known in fields_of(self.model, "serialization" if self.is_answer else "validation"):
            owner, words = _owner(known.words)
            above = [row.owner for row in rows if row.holds(known.path) and row.owner != "OpenAI"]
            status: Status = "supported" if self.is_answer else _status(words)
            values = ", ".join(f"`{value}`" for value in known.values)
            words = ": ".join(filter(None, (values, words)))
            rows.append(FieldRow(known.path, [*above, owner][0], status, words))
        lacks: Status = "not sent" if self.is_answer else "refused"
        rows += [FieldRow(path, "OpenAI", lacks, words) for path, words in self.lacks.items()]
        closed = [row for row in rows if row.status != "supported"]
        return sorted(row for row in rows if not any(one.holds(row.path) for one in closed))


_TEXT_ONLY = "this server accepts only text"
_PROMPT_USAGE = {
    f"usage.prompt_tokens_details.{name}": words
    for name, words in {
        "audio_tokens": _TEXT_ONLY,
        "image_tokens": _TEXT_ONLY,
        "text_tokens": "all tokens are text",
        "cache_write_tokens": "all tokens are cached as long as there is memory",
    }.items()
}
_USAGE = _PROMPT_USAGE | {"usage.completion_tokens_details": "all tokens are text"}
_CHAT_USAGE = _PROMPT_USAGE | {
    f"usage.completion_tokens_details.{name}": words
    for name, words in {
        "accepted_prediction_tokens": "predictions are ignored",
        "rejected_prediction_tokens": "predictions are ignored",
        "audio_tokens": "answers are text",
        "text_tokens": "answers are text",
    }.items()
}
_CHAT_LACKS = {"audio": "answers are text", "function_call": "see tool_calls"}

COMPLETION = ApiBody(
    "`POST /v1/completions`",
    CompletionRequest,
    beside=(ChatRequest,),
    note="In addition to those of both:",
)
CHAT = ApiBody(
    "`POST /v1/chat/completions`",
    ChatRequest,
    beside=(CompletionRequest,),
    note="In addition to those of both:",
    lacks={
        "messages[].content[].image_url": _TEXT_ONLY,
        "messages[].content[].input_audio": _TEXT_ONLY,
        "messages[].content[].file": _TEXT_ONLY,
    },
)
RESPONSES = ApiBody(
    "`POST /v1/responses`",
    ResponsesRequest,
    note="Input items, their parts, tools and choices of other types than those listed are refused "
    "with the path of their `type`.",
)
BODIES = (
    COMPLETION,
    CHAT,
    ApiBody("A completion", Completion, is_answer=True, lacks=_USAGE),
    ApiBody(
        "A chunk of a completion",
        CompletionChunk,
        is_answer=True,
        lacks=_USAGE,
        beside=(Completion,),
        note="As the completion, except for:",
    ),
    ApiBody(
        "A chat completion",
        ChatCompletion,
        is_answer=True,
        lacks=_CHAT_USAGE
        | {f"choices[].message.{name}": words for name, words in _CHAT_LACKS.items()}
        | {
            "choices[].message.tool_calls[].custom": "tools are functions",
            "metadata": "nothing is stored",
            "moderation": "nothing is moderated",
        },
    ),
    ApiBody(
        "A chunk of a chat completion",
        ChatCompletionChunk,
        is_answer=True,
        lacks=_CHAT_USAGE
        | {f"choices[].delta.{name}": words for name, words in _CHAT_LACKS.items()}
        | {
            "choices[].delta.refusal": "a refusal is content",
            "moderation": "nothing is moderated",
            "obfuscation": "nothing is padded",
        },
        beside=(ChatCompletion,),
        note="As the chat completion, except for:",
    ),
    RESPONSES,
    ApiBody(
        "A response",
        ResponseObject,
        is_answer=True,
        lacks={
            "access_programs": "nothing is restricted",
            "conversation": "nothing is stored",
            "error.misalignment": "nothing is moderated",
            "error.param": "only in the event before",
            "error.type": "only in the event before",
            "image": "answers are text",
            "input_transformations": "nothing is withheld",
            "moderation": "nothing is moderated",
            "output[].async": "calls are not asynchronous",
            "output[].caller": "only the model calls",
            "output[].content[].refusal": "a refusal is text",
            "output[].created_by": "only the model writes items",
            "output[].namespace": "functions have no namespaces",
            "output[].output": "functions run at the client",
            "output[].phase": "not known",
            "prompt": "nothing is stored",
            "prompt_cache_diagnostics": "nothing is cached",
            "prompt_cache_options": "nothing is cached",
            "prompt_cache_retention": "nothing is cached",
            "tool_usage": "there are no hosted tools",
            "usage.input_tokens_details.cache_write_tokens_details": "nothing is cached",
        },
        note="Items of other types than those listed do not occur.",
    ),
    ApiBody("`POST /v1/files`", UploadForm, note="A form (multipart/form-data):"),
    ApiBody("`GET /v1/files`", FileQuery, note="In the query:"),
    ApiBody("A file", FileObject, is_answer=True),
    ApiBody("A list of files", FileList, is_answer=True, note="Each of `data` is a file."),
    ApiBody("A deleted file", FileDeleted, is_answer=True),
    ApiBody("`POST /v1/batches`", CreateBatch),
    ApiBody("`GET /v1/batches`", BatchQuery, note="In the query:"),
    ApiBody("A batch", Batch, is_answer=True, note="All times are Unix seconds, null until then."),
    ApiBody("A list of batches", BatchList, is_answer=True, note="Each of `data` is a batch."),
    ApiBody("A line of a batch's input", InputLine),
    ApiBody("A line of a batch's output, or of its errors", OutputLine, is_answer=True),
    ApiBody(
        "A list of models",
        ModelList,
        is_answer=True,
        lacks={"data[].shutdown_date": "not known"},
        note="Each of `data` is what `GET /v1/models/{id}` answers.",
    ),
    ApiBody("An error", ErrorBody, is_answer=True),
)


def _status(words: str) -> Status:
    """Whether a request's field is supported, ignored or refused, by words in its description."""
    if "not supported" in words:
        return "refused"
    return "ignored" if "ignored" in words else "supported"


def _owner(words: str) -> tuple[str, str]:
    """The field's origin, and its description without the prefix that names it."""
    for owner, mark in (("vLLM", "vLLM's"), ("tdpipe", "tdpipe's")):
        if words.startswith(mark):
            return owner, words.removeprefix(mark).lstrip(",:; ")
    return "OpenAI", words

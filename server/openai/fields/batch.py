"""The objects of `/v1/files` and `/v1/batches`, in the reference's shapes.

References: https://platform.openai.com/docs/api-reference/files and
https://platform.openai.com/docs/api-reference/batch.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)
from pydantic.json_schema import SkipJsonSchema

from server.http.bodies.body import Body

Order = Literal["asc", "desc"]
Purpose = Literal["batch", "batch_output"]
Lifetime = Annotated[int, Field(ge=3600, le=30 * 24 * 3600)]
Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class _Object(BaseModel):
    model_config = ConfigDict(frozen=True)


class FileObject(_Object):
    """A file; times are Unix seconds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = Field(None, description="null: never")
    filename: str
    purpose: Purpose = Field(description="only these")
    status: Literal["uploaded", "processed", "error"] = Field(
        "processed", description="always processed: contents are checked with the batch"
    )
    status_details: str | None = Field(None, description="always null")


class FileList(_Object):
    """A page of files; the next page begins after `last_id`."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str = Field(description="empty in an empty list")
    last_id: str = Field(description="empty in an empty list")
    has_more: bool


class FileDeleted(_Object):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchError(_Object):
    """Why a batch failed; `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = Field(None, description="from 1")


class BatchErrors(_Object):
    """All reasons, up to a limit."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(_Object):
    """Numbers of requests; during validation, `total` grows with the lines read."""

    total: int = Field(0, description="during validation, the lines read so far")
    completed: int = 0
    failed: int = 0


class InputTokensDetails(_Object):
    """Details of the prompts' tokens."""

    cached_tokens: int = Field(0, description="always 0: not counted")


class OutputTokensDetails(_Object):
    """Details of the answers' tokens."""

    reasoning_tokens: int = Field(0, description="in chats, if the model marks its reasoning")


class BatchUsage(_Object):
    """Tokens of all requests that were answered."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class Batch(_Object):
    """A batch; times are Unix seconds, None for what has not happened."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = Field(None, description="the served model's first name")
    errors: BatchErrors | None = Field(None, description="of an input file that is refused")
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = Field(None, description="once it has ended, if any succeeded")
    error_file_id: str | None = Field(None, description="once it has ended, if any failed")
    created_at: int
    in_progress_at: int | None = None
    expires_at: int = Field(description="the end of the completion window")
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage | None = Field(None, description="grows with the answers")
    metadata: dict[str, str] | None = None


class BatchList(_Object):
    """A page of batches, newest first; the next page begins after `last_id`."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | SkipJsonSchema[None] = Field(None, description="absent in an empty list")
    last_id: str | SkipJsonSchema[None] = Field(None, description="absent in an empty list")
    has_more: bool


class ExpiresAfter(Body):
    """When a file is deleted automatically: seconds after its creation."""

    anchor: Literal["created_at"]
    seconds: Lifetime = Field(description="an hour to 30 days")


class CreateBatch(Body):
    """The body of POST /v1/batches."""

    input_file_id: str = Field(description="a file with the purpose batch")
    endpoint: str = Field(
        description=(
            "of all its requests: only /v1/completions, /v1/chat/completions and /v1/responses"
        )
    )
    completion_window: str = Field(description="24h, or another number of s, m, h or d")
    metadata: (
        dict[
            Annotated[str, Field(max_length=64)],
            Annotated[str, Field(max_length=512)],
        ]
        | None
    ) = Field(None, max_length=16, description="up to 16 strings of 512 characters")
    output_expires_after: ExpiresAfter | None = Field(
        None, description="when the answer files are deleted, counted from their creation"
    )


class InputLine(_Object):
    """A line of a batch's input, which `server.batches.storage.lines` reads."""

    custom_id: str = Field(description="chosen by the client, unique, up to 512 characters")
    method: Literal["POST"]
    url: str = Field(description="the batch's endpoint")
    body: dict[str, Any] = Field(description="the request, without stream")


class LineResponse(_Object):
    """The response to a request of a batch."""

    status_code: int
    request_id: str
    body: dict[str, Any] = Field(description="the completion or the error, as over HTTP")


class LineError(_Object):
    """Why a request of a batch did not run."""

    code: str = Field(description="batch_expired")
    message: str


class OutputLine(_Object):
    """A line of a batch's answers or errors, which `server.batches.storage.answers` writes."""

    id: str
    custom_id: str
    response: LineResponse | None = Field(description="null if there is an error")
    error: LineError | None = Field(description="null for requests that ran, even if they failed")


class UploadForm(BaseModel):
    """The form of POST /v1/files, by the names of its fields."""

    model_config = ConfigDict(extra="allow")

    file: bytes = Field(description="written to disk as it arrives, up to --max-file-bytes")
    purpose: Literal["batch"] = Field(description="only batch")
    expires_after_anchor: Literal["created_at"] | SkipJsonSchema[None] = Field(
        None, alias="expires_after[anchor]"
    )
    expires_after_seconds: Lifetime | SkipJsonSchema[None] = Field(
        None, alias="expires_after[seconds]", description="an hour to 30 days"
    )


class FileQuery(BaseModel):
    """The query of GET /v1/files."""

    after: str | None = Field(None, description="the id after which the page begins")
    limit: int = Field(10_000, ge=1, le=10_000, description="1 to 10,000 [10,000]")
    order: Order = Field("desc", description="by creation [desc]")
    purpose: str | None = Field(None, description="only files with this purpose")


class BatchQuery(BaseModel):
    """The query of GET /v1/batches."""

    after: str | None = Field(None, description="the id after which the page begins")
    limit: int = Field(20, ge=1, le=100, description="1 to 100 [20]")

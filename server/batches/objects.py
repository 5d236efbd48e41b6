"""The objects of the API: files and batches in the reference's shapes.

References: https://platform.openai.com/docs/api-reference/files and
https://platform.openai.com/docs/api-reference/batch.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Purpose = Literal["batch", "batch_output"]
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
    expires_at: int | None = None
    filename: str
    purpose: Purpose
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None


class FileList(_Object):
    """A page of files; the next one begins after `last_id`."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
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
    line: int | None = None


class BatchErrors(_Object):
    """All reasons, as far as there is room for them."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(_Object):
    """Requests of a batch; while it is validated, `total` grows with the lines that were read."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(_Object):
    """Of the prompts' tokens."""

    cached_tokens: int = 0


class OutputTokensDetails(_Object):
    """Of the answers' tokens."""

    reasoning_tokens: int = 0


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
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage | None = None
    metadata: dict[str, str] | None = None


class BatchList(_Object):
    """A page of batches, the youngest first; the next one begins after `last_id`."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ExpiresAfter(BaseModel):
    """When a file goes by itself: seconds after its creation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=30 * 24 * 3600)

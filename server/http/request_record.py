"""The record of a request: what its route tells the access log and the response's headers.

The outermost layer makes the record and reads it when the request has ended; the routes fill it in.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Scope

_KEY = "record"


@dataclass(slots=True)
class RequestRecord:
    """Facts about one request.

    `outcome` is set if the status does not tell it, such as that of a stream that has failed, and
    `reason` is why it was refused. `first_token_at` is in seconds of the monotonic clock. `headers`
    are added to the response. `on_end` is called with the status of the access log and the outcome.
    """

    outcome: str = ""
    reason: str = ""
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    first_token_at: float | None = None
    trace_id: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    on_end: Callable[[int, str], None] = lambda _status, _outcome: None


def begin_record(scope: Scope) -> RequestRecord:
    """Put a new record into the scope."""
    record = RequestRecord()
    scope.setdefault("state", {})[_KEY] = record
    return record


def record_of(scope: Scope) -> RequestRecord:
    """The record in the scope, or a new one that nobody reads."""
    record = scope.get("state", {}).get(_KEY)
    return record if isinstance(record, RequestRecord) else RequestRecord()

r"""A batch's lifecycle: its states, and the transitions between them.

    validating --> in_progress --> finalizing --> completed | expired
        |   \           |
        |    \----------+--> cancelling --> cancelled
        +--> failed | expired

A transition that comes too late has no effect: for example, if a batch was cancelled during its
validation, the end of the validation changes nothing.
"""

import uuid
from typing import Any, Literal, Self

from server.openai.fields.batch import Batch, BatchError, BatchErrors, BatchUsage, RequestCounts

Ending = Literal["completed", "expired", "cancelled"]

ENDED = frozenset({"failed", "completed", "expired", "cancelled"})


class StoredBatch(Batch):
    """A batch, including the fields that clients do not see.

    The ids of the answer files are set when the batch is created, but clients see the files only
    after the batch has ended. `ends_as` is the status after `finalizing`.
    """

    output_name: str
    error_name: str
    output_expires_s: int | None = None
    ends_as: Ending | None = None

    @property
    def is_open(self) -> bool:
        """Whether the batch has not ended."""
        return self.status not in ENDED

    def validated(self, num_requests: int, now: int) -> Self:
        """Return the batch after its input was found valid."""
        if self.status != "validating":
            return self
        counts = RequestCounts(total=num_requests)
        return self._with(status="in_progress", in_progress_at=now, request_counts=counts)

    def failed(self, errors: list[BatchError], now: int) -> Self:
        """Return the batch after its input was found invalid."""
        if self.status != "validating":
            return self
        return self._with(
            status="failed",
            failed_at=now,
            errors=BatchErrors(data=errors),
            request_counts=RequestCounts(),
        )

    def counted(self, counts: RequestCounts, usage: BatchUsage | None = None) -> Self:
        """Return the batch with new progress."""
        if not self.is_open:
            return self
        return self._with(request_counts=counts, usage=usage)

    def cancelling(self, now: int) -> Self:
        """Return the batch after the client has cancelled it."""
        if self.status not in ("validating", "in_progress"):
            return self
        return self._with(status="cancelling", cancelling_at=now, ends_as="cancelled")

    def finalizing(self, ends_as: Ending, now: int) -> Self:
        """Return the batch after its last answer; a cancelled batch stays `cancelling` instead."""
        if self.status not in ("validating", "in_progress"):
            return self
        return self._with(status="finalizing", finalizing_at=now, ends_as=ends_as)

    def ended(self, output_file_id: str | None, error_file_id: str | None, now: int) -> Self:
        """Return the batch after its files were published."""
        assert self.ends_as is not None, "it was finalizing or cancelling"
        return self._with(
            status=self.ends_as,
            **{f"{self.ends_as}_at": now},
            output_file_id=output_file_id,
            error_file_id=error_file_id,
        )

    def _with(self, **changes: Any) -> Self:
        return self.model_copy(update=changes)


def new_id(prefix: str) -> str:
    """Return a new unique id, such as `file-9b1d...`."""
    return prefix + uuid.uuid4().hex

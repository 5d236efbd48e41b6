r"""A batch's life: its states, and what takes it from one to the next.

    validating --> in_progress --> finalizing --> completed | expired
        |   \           |
        |    \----------+--> cancelling --> cancelled
        +--> failed | expired

A step that comes too late, such as the end of the validation of a batch that was cancelled
meanwhile, changes nothing.
"""

import uuid
from typing import Any, Literal, Self

from server.openai.fields.batch import Batch, BatchError, BatchErrors, BatchUsage, RequestCounts

Ending = Literal["completed", "expired", "cancelled"]

ENDED = frozenset({"failed", "completed", "expired", "cancelled"})


class StoredBatch(Batch):
    """What is kept of a batch beside what the client sees.

    The files of its answers have their names from the beginning, but exist for the client only once
    the batch has ended. `ends_as` is what it becomes after finalizing.
    """

    output_name: str
    error_name: str
    output_expires_s: int | None = None
    ends_as: Ending | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is something left to do."""
        return self.status not in ENDED

    def validated(self, num_requests: int, now: int) -> Self:
        """Its input can be worked on."""
        if self.status != "validating":
            return self
        counts = RequestCounts(total=num_requests)
        return self._with(status="in_progress", in_progress_at=now, request_counts=counts)

    def failed(self, errors: list[BatchError], now: int) -> Self:
        """Its input cannot be worked on."""
        if self.status != "validating":
            return self
        return self._with(
            status="failed",
            failed_at=now,
            errors=BatchErrors(data=errors),
            request_counts=RequestCounts(),
        )

    def counted(self, counts: RequestCounts, usage: BatchUsage | None = None) -> Self:
        """So far has it come."""
        if not self.is_open:
            return self
        return self._with(request_counts=counts, usage=usage)

    def cancelling(self, now: int) -> Self:
        """Its client does not want the rest."""
        if self.status not in ("validating", "in_progress"):
            return self
        return self._with(status="cancelling", cancelling_at=now, ends_as="cancelled")

    def finalizing(self, ends_as: Ending, now: int) -> Self:
        """All is answered that will be. It is in `cancelling` that a cancelled batch is closed."""
        if self.status not in ("validating", "in_progress"):
            return self
        return self._with(status="finalizing", finalizing_at=now, ends_as=ends_as)

    def ended(self, output_file_id: str | None, error_file_id: str | None, now: int) -> Self:
        """Its files are there for the client."""
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
    """An id that nobody had before, such as `file-9b1d...`."""
    return prefix + uuid.uuid4().hex

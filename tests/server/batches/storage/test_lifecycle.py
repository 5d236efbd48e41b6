"""A batch's lifecycle: transitions follow the diagram, and late ones change nothing."""

from collections.abc import Callable

import pytest

from server.batches.storage.lifecycle import ENDED, StoredBatch
from server.openai.fields.batch import BatchError, RequestCounts

Step = Callable[[StoredBatch], StoredBatch]

NEW = StoredBatch(
    id="batch_1",
    endpoint="/v1/completions",
    input_file_id="file-1",
    completion_window="24h",
    status="validating",
    created_at=0,
    expires_at=10,
    output_name="file-2",
    error_name="file-3",
)
STEPS: dict[str, Step] = {
    "validated": lambda b: b.validated(5, 1),
    "failed": lambda b: b.failed([BatchError(code="c", message="m")], 2),
    "completing": lambda b: b.finalizing("completed", 3),
    "expiring": lambda b: b.finalizing("expired", 4),
    "cancelling": lambda b: b.cancelling(5),
    "ended": lambda b: b.ended("file-2", None, 6),
}
WAYS = {
    "validating": [],
    "in_progress": ["validated"],
    "finalizing": ["validated", "completing"],
    "cancelling": ["validated", "cancelling"],
    "failed": ["failed"],
    "completed": ["validated", "completing", "ended"],
    "expired": ["validated", "expiring", "ended"],
    "cancelled": ["cancelling", "ended"],
}
LEADS = {
    ("validating", "validated"): "in_progress",
    ("validating", "failed"): "failed",
    ("validating", "cancelling"): "cancelling",
    ("validating", "completing"): "finalizing",
    ("validating", "expiring"): "finalizing",
    ("in_progress", "completing"): "finalizing",
    ("in_progress", "expiring"): "finalizing",
    ("in_progress", "cancelling"): "cancelling",
    ("finalizing", "ended"): "completed",
    ("cancelling", "ended"): "cancelled",
}


def at(status: str) -> StoredBatch:
    """A batch with this status."""
    batch = NEW
    for step in WAYS[status]:
        batch = STEPS[step](batch)
    assert batch.status == status
    return batch


@pytest.mark.parametrize("status", WAYS)
@pytest.mark.parametrize("step", [step for step in STEPS if step != "ended"])
def test_a_transition_follows_the_diagram_or_changes_nothing(status: str, step: str) -> None:
    before = at(status)
    after = STEPS[step](before)
    if (status, step) in LEADS:
        assert after.status == LEADS[status, step]
    else:
        assert after is before


@pytest.mark.parametrize("status", WAYS)
def test_a_batch_is_open_until_it_has_ended(status: str) -> None:
    assert at(status).is_open == (status not in ENDED)


@pytest.mark.parametrize(
    ("status", "ends_as"), [("finalizing", "completed"), ("cancelling", "cancelled")]
)
def test_it_ends_as_planned_with_a_timestamp(status: str, ends_as: str) -> None:
    ended = at(status).ended("file-2", None, 6)
    assert ended.status == ends_as
    assert getattr(ended, f"{ends_as}_at") == 6
    assert (ended.output_file_id, ended.error_file_id) == ("file-2", None)


def test_the_counts_of_an_ended_batch_do_not_change() -> None:
    ended = at("completed")
    assert ended.counted(RequestCounts(total=9)) is ended

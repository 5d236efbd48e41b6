"""A request of a workload, and the error of a workload that cannot be made."""

from dataclasses import dataclass


class WorkloadError(ValueError):
    """The workload cannot be made; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask and when; `answer` is the text that is right, where one is known.

    `expected_tokens` is told to the daemon as the client's own expectation.

    Without `arrival_s`, in seconds, it is there from the beginning.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int
    ignore_eos: bool = False
    answer: str | None = None
    arrival_s: float | None = None
    expected_tokens: int | None = None

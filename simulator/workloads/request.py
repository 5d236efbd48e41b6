"""A request of a workload, and the error for invalid workloads."""

from dataclasses import dataclass


class WorkloadError(ValueError):
    """The workload is invalid; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt (text or token ids), the output length in tokens, and the arrival time.

    `answer` is the correct answer, if known. `expected_tokens` is sent to the daemon as the
    prediction of the client. Without `arrival_s` (seconds), the request is present at the start.
    With `after`, it is the next turn of a conversation: its prompt follows the prompt and the
    answer of the request with that index, and it arrives `arrival_s` seconds after its end.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int
    ignore_eos: bool = False
    answer: str | None = None
    arrival_s: float | None = None
    expected_tokens: int | None = None
    after: int | None = None

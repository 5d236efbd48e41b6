"""What arrives in a simulation, and the times that come of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and the real length of its output, which the scheduler does not know.

    The tokens of its prompt are those of nobody else, unless `prompt` is given. With `after`, it is
    the next turn of a conversation: it arrives `at_s` seconds after the end of the arrival with
    that index, and its prompt begins with that one's prompt and output; `prompt` has the others.
    """

    at_s: float
    num_prompt_tokens: int
    output_len: int
    predicted_len: int = 0
    offline: bool = True
    spread: float = 0.0
    prompt: tuple[int, ...] | None = None
    after: int | None = None


@dataclass(slots=True)
class SequenceTimes:
    """The times of a request, in seconds since the start of the run; -1 until they are known.

    Lengths are in tokens.
    """

    arrived_at: float
    num_prompt_tokens: int
    output_len: int
    first_token_at: float = -1.0
    ended_at: float = -1.0

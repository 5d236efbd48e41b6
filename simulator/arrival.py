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


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds to the first token, and per output token after it.

    With `until_decode`, the wait between the prefill of a prompt and its first decode step belongs
    to the former, as if the first token were held back until there is a second one.
    """

    ttft_s: float
    tpot_s: float
    until_decode: bool = False

    def are_met(self, times: "SequenceTimes") -> bool:
        """Whether a request that has ended met both."""
        if times.ended_at < 0:
            return False
        begun_at, num_after = times.first_token_at, times.output_len - 1
        if self.until_decode and num_after:
            begun_at, num_after = times.second_token_at, num_after - 1
        tpot_s = (times.ended_at - begun_at) / max(1, num_after)
        return begun_at - times.arrived_at <= self.ttft_s and tpot_s <= self.tpot_s

    def are_missed(self, times: "SequenceTimes", now: float) -> bool:
        """Whether a request has missed one of them at `now`, open or not."""
        if times.ended_at >= 0:
            return not self.are_met(times)
        begun_at = times.second_token_at if self.until_decode else times.first_token_at
        return (now if begun_at < 0 else begun_at) - times.arrived_at > self.ttft_s


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
    second_token_at: float = -1.0

    def take_token(self, at: float) -> None:
        """Note one more token."""
        if self.first_token_at < 0:
            self.first_token_at = at
        elif self.second_token_at < 0:
            self.second_token_at = at

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token."""
        return self.first_token_at - self.arrived_at

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the first; 0 if there is only one."""
        return (self.ended_at - self.first_token_at) / max(1, self.output_len - 1)

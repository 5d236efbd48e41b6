"""The prompts of a simulation's arrivals, as token ids; conversations go on where they ended."""

from array import array
from collections.abc import Sequence

from simulator.arrival import Arrival
from simulator.pipeline import OTHER_TOKEN, STOP_TOKEN


class Prompts:
    """Makes the prompt of each arrival; the tokens that it does not specify are its own."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._first_own_token = 1 + max((max(a.prompt or (1,)) for a in arrivals), default=1)
        self._conversations: dict[int, array[int]] = {}  # prompts and outputs that others continue
        self._continued = {a.after for a in arrivals if a.after is not None}

    def make(self, number: int, arrival: Arrival) -> "array[int]":
        """The tokens of the prompt of arrival `number`."""
        tokens = array("i")
        if arrival.after is not None:
            tokens += self._conversations[arrival.after]
        if arrival.prompt is not None:
            tokens += array("i", arrival.prompt)
        own = arrival.num_prompt_tokens - len(tokens)
        tokens += array("i", [self._first_own_token + number]) * own
        if number in self._continued:
            output = array("i", [OTHER_TOKEN]) * (arrival.output_len - 1)
            self._conversations[number] = tokens + output + array("i", [STOP_TOKEN])
        return tokens

"""Sequence times: for how long sequences wait, prefill and decode."""

from collections.abc import Iterable

from engine.state.sequence import Sequence, State
from wire.histogram import REQUEST_S, Histogram


class SequenceTimes:
    """Histograms of the seconds of each sequence, in three parts.

    `queue` is from its arrival to its first step, `prefill` from there to its first token, and
    `decode` from there to its end, whatever ends it. A preemption belongs to the part in which it
    happens. Sequences with tokens of an earlier engine are left out, because it counted them.
    """

    def __init__(self) -> None:
        self.queue = Histogram(REQUEST_S)
        self.prefill = Histogram(REQUEST_S)
        self.decode = Histogram(REQUEST_S)

    def schedule(self, sequences: Iterable[Sequence], now: float) -> None:
        """Note that tokens of these sequences, all of which prefill, are fed at `now` (seconds)."""
        for sequence in sequences:
            if sequence.scheduled_at is None and not sequence.submit.output_token_ids:
                sequence.scheduled_at = now
                self.queue.observe(now - sequence.arrived_at)

    def sample(self, sequences: Iterable[Sequence], now: float) -> None:
        """Note that these sequences, all of which prefilled, have sampled a token at `now`."""
        for sequence in sequences:
            began_at = sequence.scheduled_at
            if began_at is None or sequence.first_token_at is not None:
                continue
            if sequence.state is not State.FINISHED:  # not aborted meanwhile
                sequence.first_token_at = now
                self.prefill.observe(now - began_at)

    def end(self, sequence: Sequence, now: float) -> None:
        """Note the end of a sequence."""
        if sequence.first_token_at is not None:
            self.decode.observe(now - sequence.first_token_at)

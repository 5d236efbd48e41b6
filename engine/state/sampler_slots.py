"""Sampler seats: who of the sequences the last stage's sampler knows already.

A sequence that draws, or whose logits are changed, has a seat in the sampler's tables from the
first step that samples for it until it ends. Its settings travel once, and a decode step says no
more of it than the seat.
"""

from engine.state.sequence import Sequence
from wire.messages import SamplerSetup


class SamplerSlots:
    """The seats of one life of the pipeline."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._num_slots = 0

    def setup(self, sequence: Sequence) -> SamplerSetup:
        """Give the sequence a seat; what the sampler must be told."""
        assert sequence.sampler_slot < 0
        if not self._free:
            self._free.append(self._num_slots)
            self._num_slots += 1
        sequence.sampler_slot = self._free.pop()
        submit, num_prompt_tokens = sequence.submit, sequence.num_prompt_tokens
        reads_prompt = submit.sampling.repetition_penalty != 1 or submit.sampling.bad_words
        return SamplerSetup(
            sequence.sampler_slot,
            submit.sampling,
            submit.min_tokens,
            submit.stop_token_ids,
            submit.prompt_token_ids if reads_prompt else b"",
            sequence.token_ids[num_prompt_tokens:].tobytes(),
        )

    def free(self, sequence: Sequence) -> None:
        """The sequence has ended; steps in flight still sample for it before the seat's next."""
        if sequence.sampler_slot >= 0:
            self._free.append(sequence.sampler_slot)
            sequence.sampler_slot = -1

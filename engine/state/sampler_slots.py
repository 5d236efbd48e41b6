"""Sampler slots: rows in the tables of the last stage's sampler.

A sequence that samples at random, or changes its logits, has a slot from the first step that
samples for it until it ends. Its sampling parameters are sent once, with that first step; later
steps contain only the number of the slot.
"""

from engine.state.sequence import Sequence
from wire.messages import SamplerSetup


class SamplerSlots:
    """The slots of one incarnation of the pipeline."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._num_slots = 0

    def setup(self, sequence: Sequence) -> SamplerSetup:
        """Assign a slot to the sequence; returns the message that sets it up."""
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
        """Free the slot of an ended sequence; steps in flight run before the slot is used again."""
        if sequence.sampler_slot >= 0:
            self._free.append(sequence.sampler_slot)
            sequence.sampler_slot = -1

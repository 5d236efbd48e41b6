"""Grammars: computes the tokens that each grammar allows next, in parallel with other steps.

As soon as the tokens of a step are sampled, a thread reads them and makes the masks for the next
tokens, without holding the GIL. With other micro-batches in flight, a mask is ready when its
sequence samples again. The grammar of a new sequence is compiled when its plan arrives, which on
the last stage is well before its activations.
"""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from torch import Tensor

from wire.messages import SamplerSetup, Step
from workers.device.upload import to_device
from workers.sampling.guide import Guide, compile_grammar, first_mask, next_masks, only_stops
from workers.sampling.vocabulary import Vocabulary

# Seconds that a step waits for masks. Within the limits of grammars, a mask takes milliseconds; the
# very first grammar waits for the tokenizer.
PATIENCE_S = 60.0
# Compiled grammars that are kept for reuse. Compiling takes 2 ms; the states of a grammar can grow
# to 100 MB (`max_lexer_states`).
MAX_KEPT = 8
# Sequences that share one compiled grammar. Copies share its lexer, which keeps every state that it
# reached, and fails for all copies after too many states.
MAX_COPIES = 64
MAX_THREADS = 8

log = logging.getLogger("tdpipe")


@dataclass(slots=True, eq=False)
class _Place:
    """The guide of a sampler slot; its mask is in row `row` of the masks that a thread makes."""

    guide: Guide
    masks: Future[np.ndarray] = field(default_factory=Future)
    row: int = 0


@dataclass(slots=True, eq=False)
class _Compiled:
    """A grammar that is, or will be, ready to be copied."""

    matcher: Future[LLMatcher]
    num_copies: int = 0


class Grammars:
    """The grammars of the sequences on the last stage, by sampler slot.

    `load` returns the vocabulary; it is called once, in a thread, for the first grammar. `waited_s`
    is the total of the seconds that steps have waited for masks.
    """

    def __init__(self, vocab_size: int, load: Callable[[], Vocabulary]) -> None:
        self.waited_s = 0.0
        self._vocab_size, self._load = vocab_size, load
        self._vocabulary: Future[Vocabulary] | None = None
        self._compiled: OrderedDict[str, _Compiled] = OrderedDict()
        self._expected: dict[tuple[int, int], _Place] = {}
        self._places: dict[int, _Place] = {}
        self._start_threads()

    def expect(self, step: Step) -> None:
        """Start compiling the new grammars of a plan that has arrived and will run later."""
        for setup in step.setups:
            if setup.sampling.grammar:
                self._expected[step.step_id, setup.sampler_slot] = self._begin(setup)

    def set_up(self, step_id: int, setup: SamplerSetup) -> None:
        """Put a new sequence into a sampler slot, in place of the previous one."""
        self._places.pop(setup.sampler_slot, None)
        if setup.sampling.grammar:
            expected = self._expected.pop((step_id, setup.sampler_slot), None)
            self._places[setup.sampler_slot] = expected or self._begin(setup)

    def banned(
        self, sampler_slots: np.ndarray, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """Return the rows with a grammar [guided] and their banned tokens [guided, vocabulary].

        The banned tokens are bool, and every row has at least one False. The result is None if no
        row has a grammar. The call waits for masks that are not ready yet.
        """
        rows, places = self._guided(sampler_slots)
        if not places:
            return None
        began_at = time.monotonic()
        late = wait({place.masks for place in places}, PATIENCE_S).not_done
        if late:
            self._give_up([place for place in places if place.masks in late])
        masks = np.stack([place.masks.result()[place.row] for place in places])  # [guided, words]
        self.waited_s += time.monotonic() - began_at
        return to_device(np.array(rows), device), unpacked(~masks, self._vocab_size, device)

    def advance(self, sampler_slots: np.ndarray, token_ids: Callable[[], np.ndarray]) -> None:
        """Start making the next masks of sequences that have received these tokens [rows].

        `token_ids` may wait for the device; it is called only if a sequence has a grammar.
        """
        rows, places = self._guided(sampler_slots)
        if not places:
            return
        guides = [place.guide for place in places]
        masks = self._following.submit(self._follow, guides, token_ids()[rows].tolist())
        for row, place in enumerate(places):
            place.masks, place.row = masks, row

    def close(self) -> None:
        """End the threads after they have finished their queued work."""
        self._beginning.shutdown()
        self._following.shutdown()

    def _guided(self, sampler_slots: np.ndarray) -> tuple[list[int], list[_Place]]:
        """The rows that have a grammar, and the places of their sampler slots."""
        if not self._places:
            return [], []
        places = [self._places.get(sampler_slot) for sampler_slot in sampler_slots.tolist()]
        rows = [row for row, place in enumerate(places) if place is not None]
        return rows, [place for place in places if place is not None]

    def _give_up(self, places: Sequence[_Place]) -> None:
        """Stop these sequences, and abandon their masks, which may never be ready."""
        log.error("grammars took more than %.0f s: %d sequences stop", PATIENCE_S, len(places))
        for place in places:
            # A thread may still use the old guide, so a new guide replaces it.
            place.guide, place.row = Guide(place.guide.stop_token_ids), 0
            place.masks = Future()
            place.masks.set_result(only_stops(place.guide, self._num_words)[None])
        self._compiled.clear()
        self._beginning.shutdown(wait=False)
        self._following.shutdown(wait=False)
        self._start_threads()

    def _start_threads(self) -> None:
        # The pools are separate, because a new grammar may take long and must not delay the masks
        # of other sequences. Several threads are used, so that a step waits only for its own masks.
        self._beginning = ThreadPoolExecutor(MAX_THREADS, "grammar")
        self._following = ThreadPoolExecutor(MAX_THREADS, "mask")
        self._executor = cache(partial(LLExecutor, min(MAX_THREADS, os.cpu_count() or 1)))

    def _begin(self, setup: SamplerSetup) -> _Place:
        """Make a guide; a thread makes its first mask."""
        place = _Place(Guide(setup.stop_token_ids))
        output = np.frombuffer(setup.output_token_ids, np.int32).tolist()
        compiled = self._compile(setup.sampling.grammar)
        # Jobs start in the order of submission, so no job can wait for a later one.
        place.masks = self._beginning.submit(self._start, place.guide, compiled, output)
        return place

    def _compile(self, grammar: str) -> Future[LLMatcher]:
        if self._vocabulary is None:
            self._vocabulary = self._beginning.submit(self._load)
        vocabulary = self._vocabulary
        compiled = self._compiled.pop(grammar, None)
        if compiled is None or compiled.num_copies == MAX_COPIES:
            compiled = _Compiled(
                self._beginning.submit(lambda: compile_grammar(grammar, vocabulary.result()))
            )
        compiled.num_copies += 1
        self._compiled[grammar] = compiled
        if len(self._compiled) > MAX_KEPT:
            self._compiled.popitem(last=False)
        return compiled.matcher

    # --- run in the threads; never raise, because only a step would see the exception -------------

    def _start(
        self, guide: Guide, compiled: Future[LLMatcher], output: Sequence[int]
    ) -> np.ndarray:
        try:
            return first_mask(guide, compiled.result(), output, self._loaded)
        except BaseException as error:  # a panic in the library is not an Exception
            guide.fail(str(error))
            return only_stops(guide, self._num_words)[None]

    def _follow(self, guides: Sequence[Guide], token_ids: Sequence[int]) -> np.ndarray:
        try:
            return next_masks(guides, token_ids, self._loaded, self._executor())
        except BaseException as error:
            for guide in guides:
                guide.fail(str(error))
            return np.stack([only_stops(guide, self._num_words) for guide in guides])

    @property
    def _loaded(self) -> Vocabulary:
        assert self._vocabulary is not None
        return self._vocabulary.result()

    @property
    def _num_words(self) -> int:
        return -(-self._vocab_size // 32)


def constrain(logits: Tensor, banned: Tensor, unedited: Callable[[], Tensor]) -> None:
    """Set the logits [rows, vocabulary] of `banned` tokens to -inf, in place.

    The grammar has priority: if the earlier edits (allowed ids, bad words, a minimum length) have
    left no token that the grammar allows, only the grammar is applied, to the `unedited` row.
    """
    logits.masked_fill_(banned, -torch.inf)
    is_stuck = logits.amax(dim=-1) == -torch.inf
    if is_stuck.any():
        logits[is_stuck] = unedited()[is_stuck].masked_fill_(banned[is_stuck], -torch.inf)


def unpacked(masks: np.ndarray, vocab_size: int, device: torch.device) -> Tensor:
    """Unpack the bits of masks uint32 [rows, words] to bool [rows, vocabulary]."""
    if device.type == "cpu":  # ten times as fast on a CPU, without a copy
        spread = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
        return torch.from_numpy(spread.view(bool))[:, :vocab_size]
    packed = to_device(masks.view(np.uint8), device)
    bits = torch.arange(8, dtype=torch.uint8, device=device)
    return ((packed[:, :, None] >> bits) & 1).flatten(1)[:, :vocab_size].bool()

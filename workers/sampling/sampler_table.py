"""The sampler table: the sampling parameters and the sequence state of each slot.

Scalar parameters are columns, so that a step needs one look-up per column. Sequences with penalties
also have token counts on the device, and the few sequences that name tokens have lists of them.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wire.messages import SamplerSetup
from workers.device.upload import to_device
from workers.sampling.bad_words import BadWords

_FIRST_SLOTS = 64


@dataclass(slots=True)
class _Named:
    """The tokens that the parameters of a sequence name."""

    bias_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    biases: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    others: Tensor | None = None  # bool [vocabulary] on the device: tokens that are not allowed
    stop_ids: tuple[int, ...] = ()  # banned before min_tokens
    bad_words: BadWords | None = None
    logprob_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))


class SamplerTable:
    """Columns by sampler slot; they grow with the number of slots."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size, self._device = vocab_size, device
        self.temperatures = np.zeros(_FIRST_SLOTS, np.float32)
        self.top_ps = np.ones(_FIRST_SLOTS, np.float32)
        self.top_ks = np.zeros(_FIRST_SLOTS, np.int32)
        self.min_ps = np.zeros(_FIRST_SLOTS, np.float32)
        self.seeds = np.zeros(_FIRST_SLOTS, np.uint64)
        self.num_outputs = np.zeros(_FIRST_SLOTS, np.int32)
        self.num_logprobs = np.full(_FIRST_SLOTS, -1, np.int32)
        self._min_tokens = np.zeros(_FIRST_SLOTS, np.int32)
        self._presence = np.zeros(_FIRST_SLOTS, np.float32)
        self._frequency = np.zeros(_FIRST_SLOTS, np.float32)
        self._repetition = np.ones(_FIRST_SLOTS, np.float32)
        self._named: dict[int, _Named] = {}
        # Row of each slot in the counts; -1 for a sequence without penalties.
        self._count_rows = np.full(_FIRST_SLOTS, -1, np.int64)
        self._free_rows: list[int] = []
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)

    def set_up(self, setup: SamplerSetup) -> None:
        """Put a new sequence into a sampler slot, in place of the previous one."""
        sampler_slot, sampling = setup.sampler_slot, setup.sampling
        while sampler_slot >= len(self.temperatures):
            self._grow()
        self._forget(sampler_slot)
        output = np.frombuffer(setup.output_token_ids, np.int32)
        self.temperatures[sampler_slot] = sampling.temperature
        self.top_ps[sampler_slot], self.top_ks[sampler_slot] = sampling.top_p, sampling.top_k
        self.min_ps[sampler_slot], self.seeds[sampler_slot] = sampling.min_p, sampling.seed
        self.num_outputs[sampler_slot] = len(output)
        self.num_logprobs[sampler_slot] = sampling.num_logprobs
        self._min_tokens[sampler_slot] = setup.min_tokens
        self._presence[sampler_slot] = sampling.presence_penalty
        self._frequency[sampler_slot] = sampling.frequency_penalty
        self._repetition[sampler_slot] = sampling.repetition_penalty
        if (
            sampling.presence_penalty
            or sampling.frequency_penalty
            or (sampling.repetition_penalty != 1)
        ):
            self._add_counts(sampler_slot, np.frombuffer(setup.prompt_token_ids, np.int32), output)
        named = self._names(setup, output)
        if named is not None:
            self._named[sampler_slot] = named

    def edit(self, logits: Tensor, sampler_slots: np.ndarray) -> None:
        """Edit logits [rows, vocabulary] in place, by the parameters of the `sampler_slots`."""
        self._penalise(logits, sampler_slots)
        named = self._named_of(sampler_slots)
        if not named:
            return
        self._bias(logits, named)
        for row, _, own in named:
            if own.others is not None:
                logits[row].masked_fill_(own.others, -torch.inf)
        self._ban(logits, named)

    def logprob_ids(self, sampler_slots: np.ndarray) -> dict[int, np.ndarray]:
        """The tokens whose log-probabilities are returned, by row, where a sequence names them."""
        named = self._named_of(sampler_slots)
        return {row: own.logprob_ids for row, _, own in named if len(own.logprob_ids)}

    def count(self, sampler_slots: np.ndarray, token_ids: Tensor) -> None:
        """Count the tokens [rows] that these sequences have received."""
        self.num_outputs[sampler_slots] += 1
        rows = self._count_rows[sampler_slots]
        counted = np.flatnonzero(rows >= 0)
        if len(counted):
            at = to_device(counted, self._device)
            places = to_device(rows[counted], self._device)
            self._counts[places, token_ids[at]] += 1
        remembering = [(row, own.bad_words) for row, _, own in self._named_of(sampler_slots)]
        if any(words is not None for _, words in remembering):
            picked = token_ids.tolist()
            for row, words in remembering:
                if words is not None:
                    words.append(picked[row])

    def _named_of(self, sampler_slots: np.ndarray) -> list[tuple[int, int, _Named]]:
        """Return row, sampler slot and named tokens of the rows that have named tokens."""
        if not self._named:
            return []
        found = (
            (row, sampler_slot, self._named.get(sampler_slot))
            for row, sampler_slot in enumerate(sampler_slots.tolist())
        )
        return [
            (row, sampler_slot, named) for row, sampler_slot, named in found if named is not None
        ]

    def _penalise(self, logits: Tensor, sampler_slots: np.ndarray) -> None:
        """Apply the repetition penalty, then frequency and presence (vLLM's order)."""
        rows = self._count_rows[sampler_slots]
        chosen = np.flatnonzero(rows >= 0)
        if not len(chosen):
            return
        at = to_device(chosen, self._device)
        places = to_device(rows[chosen], self._device)
        own, counts = logits[at], self._counts[places]

        def column(values: np.ndarray) -> Tensor:
            return to_device(values[sampler_slots[chosen]], self._device)[:, None]

        seen = (counts > 0) | self._in_prompt[places]
        repetition = column(self._repetition)
        own = torch.where(seen, torch.where(own > 0, own / repetition, own * repetition), own)
        own -= column(self._frequency) * counts + column(self._presence) * (counts > 0)
        logits[at] = own

    def _bias(self, logits: Tensor, named: list[tuple[int, int, _Named]]) -> None:
        """Add the `logit_bias` of all rows that have one."""
        biased = [(row, own) for row, _, own in named if len(own.bias_ids)]
        if not biased:
            return
        ids = np.concatenate([own.bias_ids for _, own in biased])
        rows = np.repeat([row for row, _ in biased], [len(own.bias_ids) for _, own in biased])
        biases = np.concatenate([own.biases for _, own in biased])
        at, ids_at = (to_device(each, self._device) for each in (rows, ids))
        logits.index_put_((at, ids_at), to_device(biases, self._device), accumulate=True)

    def _ban(self, logits: Tensor, named: list[tuple[int, int, _Named]]) -> None:
        """Set the tokens that must not come now to -inf, unless no token of a row would be left.

        `allowed_token_ids` have priority: with them, `bad_words` of several tokens and `min_tokens`
        can exclude every token.
        """
        banned = [
            (row, id_)
            for row, sampler_slot, own in named
            for id_ in self._banned(sampler_slot, own)
        ]
        if not banned:
            return
        rows, ids = to_device(np.array(banned), self._device).T
        before = logits[rows, ids]
        logits[rows, ids] = -torch.inf
        limited = {row for row, _, own in named if own.others is not None}
        limited &= {row for row, _ in banned}
        if limited:
            at = to_device(np.array(sorted(limited)), self._device)
            is_stuck = torch.zeros(len(logits), dtype=torch.bool, device=self._device)
            is_stuck[at] = logits[at].amax(dim=-1) == -torch.inf
            logits[rows, ids] = torch.where(is_stuck[rows], before, -torch.inf)

    def _banned(self, sampler_slot: int, named: _Named) -> list[int]:
        """The tokens that the sequence must not get now, regardless of their logits."""
        too_early = self.num_outputs[sampler_slot] < self._min_tokens[sampler_slot]
        stops = list(named.stop_ids) if too_early else []
        return stops + (named.bad_words.banned() if named.bad_words is not None else [])

    def _names(self, setup: SamplerSetup, output: np.ndarray) -> _Named | None:
        sampling, named, names_any = setup.sampling, _Named(), False
        if sampling.bias_ids:
            named.bias_ids = np.frombuffer(sampling.bias_ids, np.int32).astype(np.int64)
            named.biases, names_any = np.frombuffer(sampling.biases, np.float32), True
        if sampling.allowed_token_ids:
            others = torch.ones(self._vocab_size, dtype=torch.bool, device=self._device)
            others[self._ids(sampling.allowed_token_ids)] = False
            named.others, names_any = others, True
        if setup.min_tokens and setup.stop_token_ids:
            named.stop_ids, names_any = setup.stop_token_ids, True
        if sampling.bad_words:
            words = (np.frombuffer(word, np.int32).tolist() for word in sampling.bad_words)
            prompt = np.frombuffer(setup.prompt_token_ids, np.int32)
            tokens = [*prompt.tolist(), *output.tolist()]
            named.bad_words, names_any = BadWords(map(tuple, words), tokens), True
        if sampling.logprob_token_ids:
            named.logprob_ids = np.frombuffer(sampling.logprob_token_ids, np.int32)
            names_any = True
        return named if names_any else None

    def _ids(self, packed: bytes) -> Tensor:
        ids = np.frombuffer(packed, np.int32).astype(np.int64)
        return to_device(ids, self._device)

    def _add_counts(self, sampler_slot: int, prompt: np.ndarray, output: np.ndarray) -> None:
        if not self._free_rows:
            self._grow_counts()
        row = self._free_rows.pop()
        self._count_rows[sampler_slot] = row
        counts = np.bincount(output, minlength=self._vocab_size)[: self._vocab_size]
        self._counts[row] = to_device(counts.astype(np.int32), self._device)
        in_prompt = np.zeros(self._vocab_size, bool)
        in_prompt[prompt] = True
        self._in_prompt[row] = to_device(in_prompt, self._device)

    def _forget(self, sampler_slot: int) -> None:
        self._named.pop(sampler_slot, None)
        if self._count_rows[sampler_slot] >= 0:
            self._free_rows.append(int(self._count_rows[sampler_slot]))
            self._count_rows[sampler_slot] = -1

    def _grow(self) -> None:
        """Double the number of slots."""
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray):
                setattr(self, name, np.concatenate([column, _unset_like(name, column)]))

    def _grow_counts(self) -> None:
        size = len(self._counts)
        more = max(8, size)
        self._counts = torch.cat([self._counts, self._counts.new_zeros(more, self._vocab_size)])
        self._in_prompt = torch.cat(
            [self._in_prompt, self._in_prompt.new_zeros(more, self._vocab_size)]
        )
        self._free_rows += range(size, size + more)


def _unset_like(name: str, column: np.ndarray) -> np.ndarray[Any, Any]:
    """Make unset values for a column; only `_count_rows` needs a specific value (-1)."""
    return np.full_like(column, -1 if name == "_count_rows" else 0)

"""The sampler's table: what each slot's sequence wants, and what it has generated so far.

Plain numbers stand in columns, so that a step's rows are one look-up each; penalties keep counts on
the device, for the sequences that have any. Lists are kept for the few that name tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.messages import SamplerSetup

_FIRST_SLOTS = 64


@dataclass(slots=True)
class _Named:
    """Tokens that one sequence names; ids are int64 on the device."""

    bias_ids: Tensor | None = None
    biases: Tensor | None = None
    others: Tensor | None = None  # bool [vocabulary], all but the allowed
    stop_ids: Tensor | None = None  # until min_tokens are out
    bad_words: tuple[tuple[int, ...], ...] = ()
    history: list[int] | None = None  # prompt and output, for bad words of several tokens


class SamplerTable:
    """Columns by slot; they grow as slots come."""

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
        # Rows of the counts; -1 for a sequence without penalties.
        self._count_rows = np.full(_FIRST_SLOTS, -1, np.int64)
        self._free_rows: list[int] = []
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)

    def set_up(self, setup: SamplerSetup) -> None:
        """A new sequence in a slot; whoever had it before is forgotten."""
        slot, sampling = setup.slot, setup.sampling
        while slot >= len(self.temperatures):
            self._grow()
        self._forget(slot)
        output = np.frombuffer(setup.output_token_ids, np.int32)
        self.temperatures[slot] = sampling.temperature
        self.top_ps[slot], self.top_ks[slot] = sampling.top_p, sampling.top_k
        self.min_ps[slot], self.seeds[slot] = sampling.min_p, sampling.seed
        self.num_outputs[slot] = len(output)
        self.num_logprobs[slot] = sampling.num_logprobs
        self._min_tokens[slot] = setup.min_tokens
        self._presence[slot] = sampling.presence_penalty
        self._frequency[slot] = sampling.frequency_penalty
        self._repetition[slot] = sampling.repetition_penalty
        if (
            sampling.presence_penalty
            or sampling.frequency_penalty
            or (sampling.repetition_penalty != 1)
        ):
            self._add_counts(slot, np.frombuffer(setup.prompt_token_ids, np.int32), output)
        named = self._names(setup, output)
        if named is not None:
            self._named[slot] = named

    def edit(self, logits: Tensor, slots: np.ndarray) -> None:
        """Change logits [rows, vocabulary] in place as the sequences in `slots` want it."""
        self._penalise(logits, slots)
        if not self._named:
            return
        for row, slot in enumerate(slots.tolist()):
            named = self._named.get(slot)
            if named is not None:
                self._edit_named(logits[row], named, slot)

    def count(self, slots: np.ndarray, token_ids: Tensor) -> None:
        """These sequences have got these tokens. [rows]"""
        self.num_outputs[slots] += 1
        rows = self._count_rows[slots]
        counted = np.flatnonzero(rows >= 0)
        if len(counted):
            at = torch.from_numpy(counted).to(self._device)
            places = torch.from_numpy(rows[counted]).to(self._device)
            self._counts[places, token_ids[at]] += 1
        remembering = [
            (row, named)
            for row, slot in enumerate(slots.tolist() if self._named else ())
            if (named := self._named.get(slot)) is not None and named.history is not None
        ]
        if remembering:
            picked = token_ids.tolist()
            for row, named in remembering:
                assert named.history is not None
                named.history.append(picked[row])

    def _penalise(self, logits: Tensor, slots: np.ndarray) -> None:
        """Repetition, then frequency and presence (vLLM's order)."""
        rows = self._count_rows[slots]
        chosen = np.flatnonzero(rows >= 0)
        if not len(chosen):
            return
        at = torch.from_numpy(chosen).to(self._device)
        places = torch.from_numpy(rows[chosen]).to(self._device)
        own, counts = logits[at], self._counts[places]

        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values[slots[chosen]]).to(self._device)[:, None]

        seen = (counts > 0) | self._in_prompt[places]
        repetition = column(self._repetition)
        own = torch.where(seen, torch.where(own > 0, own / repetition, own * repetition), own)
        own -= column(self._frequency) * counts + column(self._presence) * (counts > 0)
        logits[at] = own

    def _edit_named(self, logits: Tensor, named: _Named, slot: int) -> None:
        """One row, [vocabulary]."""
        if named.bias_ids is not None and named.biases is not None:
            logits.index_add_(0, named.bias_ids, named.biases)
        if named.others is not None:
            logits.masked_fill_(named.others, -torch.inf)
        if named.stop_ids is not None and self.num_outputs[slot] < self._min_tokens[slot]:
            logits[named.stop_ids] = -torch.inf
        if named.bad_words:
            history = named.history or []
            banned = [
                word[-1]
                for word in named.bad_words
                if len(word) == 1 or tuple(history[1 - len(word) :]) == word[:-1]
            ]
            if banned:
                logits[torch.tensor(banned, device=self._device)] = -torch.inf

    def _names(self, setup: SamplerSetup, output: np.ndarray) -> _Named | None:
        sampling, named, names_any = setup.sampling, _Named(), False
        if sampling.bias_ids:
            named.bias_ids = self._ids(sampling.bias_ids)
            biases = np.frombuffer(sampling.biases, np.float32).copy()
            named.biases, names_any = torch.from_numpy(biases).to(self._device), True
        if sampling.allowed_token_ids:
            others = torch.ones(self._vocab_size, dtype=torch.bool, device=self._device)
            others[self._ids(sampling.allowed_token_ids)] = False
            named.others, names_any = others, True
        if setup.min_tokens and setup.stop_token_ids:
            ids = torch.tensor(setup.stop_token_ids, device=self._device)
            named.stop_ids, names_any = ids, True
        if sampling.bad_words:
            words = (np.frombuffer(word, np.int32).tolist() for word in sampling.bad_words)
            named.bad_words, names_any = tuple(map(tuple, words)), True
            prompt = np.frombuffer(setup.prompt_token_ids, np.int32)
            named.history = [*prompt.tolist(), *output.tolist()]
        return named if names_any else None

    def _ids(self, packed: bytes) -> Tensor:
        ids = np.frombuffer(packed, np.int32).astype(np.int64)
        return torch.from_numpy(ids).to(self._device)

    def _add_counts(self, slot: int, prompt: np.ndarray, output: np.ndarray) -> None:
        if not self._free_rows:
            self._grow_counts()
        row = self._free_rows.pop()
        self._count_rows[slot] = row
        counts = np.bincount(output, minlength=self._vocab_size)[: self._vocab_size]
        self._counts[row] = torch.from_numpy(counts.astype(np.int32)).to(self._device)
        in_prompt = np.zeros(self._vocab_size, bool)
        in_prompt[prompt] = True
        self._in_prompt[row] = torch.from_numpy(in_prompt).to(self._device)

    def _forget(self, slot: int) -> None:
        self._named.pop(slot, None)
        if self._count_rows[slot] >= 0:
            self._free_rows.append(int(self._count_rows[slot]))
            self._count_rows[slot] = -1

    def _grow(self) -> None:
        """Twice as many slots."""
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
    """More of a column, of which only the rows without counts must be told from others."""
    return np.full_like(column, -1 if name == "_count_rows" else 0)

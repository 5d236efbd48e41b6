"""The sampler: turns the last stage's logits into token ids.

The random number for output token `i` of a sequence is a hash of (seed, i), so there is no
generator state that must survive a preemption or a restart, and it does not depend on the batch.
One uniform number per row selects a token by inverse transform sampling. A sequence's sampling
parameters are in its slot of a table (`workers.sampling.sampler_table`); rows without a slot take
the most likely token, and a step of only such rows is one argmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wire.messages import Logprobs, SamplerSetup, Sampling, Step
from workers.device.host_copy import HostCopy, to_host
from workers.device.upload import to_device
from workers.sampling.filters import Filters, draw_filtered
from workers.sampling.grammars import Grammars, constrain
from workers.sampling.logprobs import logprobs_of
from workers.sampling.sampler_table import SamplerTable
from workers.sampling.vocabulary import no_vocabulary

# Rows that are sampled together; with a vocabulary of 150,000 they need 300 MB.
_AT_ONCE = 64
# Tokens of a group where all tokens may be drawn.
_GROUP = 256


@dataclass(slots=True, frozen=True)
class Sampled:
    """The tokens of a step, which may still be on their way to the host, int32 [rows]."""

    ids: HostCopy
    logprobs: Logprobs | None = None

    def token_ids(self) -> bytes:
        """The ids, packed as in messages; waits for the device."""
        return self.ids.numpy().tobytes()


class Sampler:
    """The sampler of the last stage, with the sampling state of its sequences.

    Without `grammars`, a sequence that has a grammar is ended immediately.
    """

    def __init__(
        self, vocab_size: int, device: torch.device, grammars: Grammars | None = None
    ) -> None:
        self._table = SamplerTable(vocab_size, device)
        self._grammars = grammars or Grammars(vocab_size, no_vocabulary)

    def expect(self, step: Step) -> None:
        """Prepare for a step that will be sampled later: start to compute its grammar masks."""
        self._grammars.expect(step)

    def sample(self, logits: Tensor, step: Step) -> tuple[bytes, Logprobs | None]:
        """The same as `launch`, with the token ids packed as int32; waits for the device."""
        sampled = self.launch(logits, step)
        return sampled.token_ids(), sampled.logprobs

    @torch.inference_mode()
    def launch(self, logits: Tensor, step: Step) -> Sampled:
        """Sample a token for each row, and compute the requested log-probabilities.

        `logits` is [sampling rows, vocabulary], and is not changed. Waits for the device only where
        rows have grammars, bad words or log-probabilities.
        """
        for setup in step.setups:
            self._table.set_up(setup)
            self._grammars.set_up(step.step_id, setup)
        if not step.sampler_slots:
            return Sampled(ids_to_host(most_likely(logits)))
        all_sampler_slots = np.frombuffer(step.sampler_slots, np.int32)
        rows = np.flatnonzero(all_sampler_slots >= 0)
        sampler_slots = all_sampler_slots[rows]
        at = to_device(rows, logits.device)
        picked = self._pick(logits, rows, sampler_slots)
        token_ids = picked
        if len(rows) < len(all_sampler_slots):
            token_ids = most_likely(logits)
            token_ids[at] = picked
        self._table.count(sampler_slots, picked)
        ids = ids_to_host(token_ids)
        self._grammars.advance(sampler_slots, lambda: ids.numpy()[rows])
        return Sampled(ids, self._logprobs_of(logits, token_ids, rows, sampler_slots))

    def dummy_run(self, logits: Tensor) -> None:
        """Allocate the memory of the most expensive step, in which all rows have penalties and
        filters.

        A sampler that has done this must not be used for anything else.
        """
        sampling = Sampling(temperature=1.0, top_p=0.9, presence_penalty=0.1)
        sampler_slots = np.arange(len(logits), dtype=np.int32)
        setups = tuple(
            SamplerSetup(sampler_slot, sampling, 0, (), b"", b"")
            for sampler_slot in sampler_slots.tolist()
        )
        rows = (b"",) * 6
        self.sample(
            logits,
            Step(0, 0, "decode", *rows, sampler_slots=sampler_slots.tobytes(), setups=setups),
        )

    def _pick(self, logits: Tensor, sampled: np.ndarray, sampler_slots: np.ndarray) -> Tensor:
        """One token for each of the rows `sampled`. [rows]"""
        table, own_logits = self._table, _rows_of(logits, sampled)
        edited = own_logits.to(torch.float32, copy=True)
        table.edit(edited, sampler_slots)
        guided = self._grammars.banned(sampler_slots, logits.device)
        if guided is not None:
            rows, banned = guided
            own = edited[rows]
            constrain(own, banned, lambda: own_logits[rows].float())
            edited[rows] = own
        is_drawn = table.temperatures[sampler_slots] > 0
        if is_drawn.all():
            return _draw(edited, table, sampler_slots)
        token_ids = most_likely(edited)
        drawn = np.flatnonzero(is_drawn)
        if len(drawn):
            drawing = to_device(drawn, logits.device)
            token_ids[drawing] = _draw(_rows_of(edited, drawn), table, sampler_slots[drawn])
        return token_ids

    def _logprobs_of(
        self, logits: Tensor, token_ids: Tensor, rows: np.ndarray, sampler_slots: np.ndarray
    ) -> Logprobs | None:
        """The log-probabilities of the rows that request them."""
        num_tops = self._table.num_logprobs[sampler_slots]
        wanted = num_tops >= 0
        if not wanted.any():
            return None
        where = to_device(rows[wanted], logits.device)
        named = self._table.logprob_ids(sampler_slots[wanted])
        return logprobs_of(
            logits[where].float(), token_ids[where], num_tops[wanted], rows[wanted], named
        )


def most_likely(logits: Tensor) -> Tensor:
    """The token with the largest logit of each row. [rows]"""
    return logits.max(dim=-1).indices  # in bf16 on a CPU, argmax takes four times as long


def ids_to_host(token_ids: Tensor) -> HostCopy:
    """Start to copy token ids to the host, as int32."""
    return to_host(token_ids.to(torch.int32))


def uniforms(seeds: np.ndarray, output_indices: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each (seed, index), by two steps of splitmix64 (Steele 2014).

    seeds uint64, output_indices any integer type; returns float64 of the same length.
    """
    state = _mix(seeds) ^ output_indices.astype(np.uint64)
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _draw(logits: Tensor, table: SamplerTable, sampler_slots: np.ndarray) -> Tensor:
    """One token per row from its tempered, filtered distribution; changes `logits`. [rows]"""
    device = logits.device
    draws = to_device(
        uniforms(table.seeds[sampler_slots], table.num_outputs[sampler_slots]), device
    )
    # A lower temperature would overflow in the division, and 1e-6 already is as good as greedy.
    temperatures = to_device(table.temperatures[sampler_slots], device).clamp(min=1e-6)
    tempered = logits.div_(temperatures[:, None])
    top_ks = table.top_ks[sampler_slots]
    is_filtered = (
        (table.top_ps[sampler_slots] < 1)
        | ((top_ks > 0) & (top_ks < logits.shape[-1]))
        | (table.min_ps[sampler_slots] > 0)
    )
    token_ids = torch.empty(len(sampler_slots), dtype=torch.long, device=device)
    for rows in _parts(np.flatnonzero(is_filtered)):
        at = to_device(rows, device)
        filters = _filters_of(table, sampler_slots[rows], device)
        token_ids[at] = draw_filtered(_rows_of(tempered, rows), draws[at], filters)
    for rows in _parts(np.flatnonzero(~is_filtered)):
        at = to_device(rows, device)
        token_ids[at] = _draw_unfiltered(_rows_of(tempered, rows), draws[at])
    return token_ids


def _filters_of(table: SamplerTable, sampler_slots: np.ndarray, device: torch.device) -> Filters:
    """The filters of these slots."""
    columns = (table.top_ps, table.top_ks, table.min_ps)
    top_ps, top_ks, min_ps = (to_device(own[sampler_slots], device)[:, None] for own in columns)
    return Filters(top_ps, top_ks.long(), min_ps)


def _rows_of(tensor: Tensor, rows: np.ndarray) -> Tensor:
    """These rows, which ascend: a view where no row is left out, which costs nothing on a CPU."""
    first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
    if last - first + 1 == len(rows):
        return tensor[first : last + 1]
    return tensor[to_device(rows, tensor.device)]


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in parts of at most `_AT_ONCE`."""
    return (rows[at : at + _AT_ONCE] for at in range(0, len(rows), _AT_ONCE))


def _draw_unfiltered(logits: Tensor, draws: Tensor) -> Tensor:
    """Sample from all tokens in the order of their ids.

    First a group of tokens, then a token in it: one cumulative sum over the vocabulary in fp64
    would take three times as long.
    """
    weights = logits.softmax(dim=-1)
    if excess := -logits.shape[-1] % _GROUP:
        weights = nn.functional.pad(weights, (0, excess))
    groups = weights.view(len(weights), -1, _GROUP)
    group, within = _find(groups.sum(dim=-1), draws)
    tokens = groups[torch.arange(len(groups), device=groups.device), group]
    return group * _GROUP + _find(tokens, within)[0]


def _find(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative sum of each row [rows, n] passes its draw in [0, 1), [rows].

    Returns the index, and where in its weight the draw is, in [0, 1].
    """
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    targets = draws[:, None] * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, targets, right=True)
    # Rounding may select a position after the last one that has a weight above 0.
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    picked = torch.minimum(picked, last)
    own = weights.gather(-1, picked).double()
    within = (targets - (cumulative.gather(-1, picked) - own)) / own
    return picked[:, 0], within[:, 0].clamp(0, 1)

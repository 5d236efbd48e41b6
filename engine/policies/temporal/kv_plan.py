"""The KV plan: will what is admitted now still fit when it has grown? (PAPERS.md, section 2 e)

TD-Pipe assumes each sequence to end exactly at its predicted length. Here a sequence that has
generated g tokens is still there p steps later with the probability S(g + p) / S(g) of its survival
function, and holds ceil((length + p) / block) blocks if so. The sum over the sequences is about
normal: its mean plus a margin of so many standard deviations must fit at every future point.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from engine.state.length_errors import Floats, LengthErrors, bins_of
from engine.state.pool import Pool
from engine.state.sequence import Sequence

POINTS = np.array([1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048], dtype=float)
"""Decode steps ahead."""


class KvPlan:
    """Mean and variance of the blocks in use at each future point, as sequences are admitted."""

    def __init__(self, pool: Pool, errors: LengthErrors, margin: float) -> None:
        self._ledger, self._margin = pool.ledger, margin
        live = _Columns.of(pool.live.values())
        self.survival = errors.survival(bins_of(live.generated, live.medians, live.spreads))
        mean, variance = _use(live, self.survival, self._ledger.block_size)
        self._mean, self._variance = mean.sum(axis=0), variance.sum(axis=0)

    def admit(self, candidates: list[Sequence], horizons: list[float]) -> list[Sequence]:
        """Those up to the first that does not fit for so many rounds, counted in."""
        if not candidates:
            return []
        mean, variance = _use(_Columns.of(candidates), self.survival, self._ledger.block_size)
        mean = self._mean + mean.cumsum(axis=0)
        variance = self._variance + variance.cumsum(axis=0)
        planned = np.maximum(np.array(horizons), POINTS[0])[:, None] >= POINTS
        fits = mean + self._margin * np.sqrt(variance) <= self._ledger.num_blocks
        fits = (fits | ~planned).all(axis=1)
        number = int(len(candidates) if fits.all() else fits.argmin())
        if number:
            self._mean, self._variance = mean[number - 1], variance[number - 1]
        return candidates[:number]


class _Columns(NamedTuple):
    """Of each sequence, in tokens: [sequences]."""

    generated: Floats
    medians: Floats
    spreads: Floats
    lengths: Floats
    longest: Floats

    @classmethod
    def of(cls, sequences: Iterable[Sequence]) -> "_Columns":
        """Tokens generated, what is expected of them, present and longest length."""
        rows = [
            (
                len(s.token_ids) - s.num_prompt_tokens,
                s.expected.median,
                s.expected.spread,
                len(s.token_ids),
                s.longest_len,
            )
            for s in sequences
        ]
        return cls(*np.array(rows, dtype=np.float64).reshape(-1, 5).T)


def _use(rows: _Columns, survival: Floats, block_size: int) -> tuple[Floats, Floats]:
    """Mean and variance of each sequence's blocks at each point, both [sequences, points]."""
    generated, medians, spreads = rows.generated, rows.medians, rows.spreads
    later = survival[bins_of(generated[:, None] + POINTS, medians[:, None], spreads[:, None])]
    now = survival[bins_of(generated, medians, spreads)]
    chance = later / np.maximum(now, 1e-12)[:, None]
    held = rows.lengths[:, None] + POINTS
    chance = np.where(held <= rows.longest[:, None], chance, 0.0)
    chance[:, 0] = 1.0  # nobody is gone before the next step
    blocks = np.ceil(held / block_size)
    return chance * blocks, chance * (1 - chance) * blocks * blocks

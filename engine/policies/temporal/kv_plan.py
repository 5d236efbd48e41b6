"""The KV plan: predicts whether admitted sequences still fit after they have grown.

TD-Pipe assumes that each sequence ends exactly at its predicted length. Here (docs/papers.md,
section 2 e) a sequence that has generated g tokens is still running p steps later with probability
S(g + p) / S(g), where S is its survival function, and then holds ceil((length + p) / block_size)
blocks. The mean total of all sequences must fit at every future point. A margin of one standard
deviation was measured and removed: after the plan had got a horizon, the margin changed the
throughput on L20 by +0.2 % (13B) and -2.0 % (32B).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from engine.state.length_errors import Floats, LengthErrors, bins_of
from engine.state.pool import Pool
from engine.state.sequence import Sequence

POINTS = np.array([1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048], dtype=float)
"""Future points of the plan, in decode steps from now."""


class KvPlan:
    """The mean number of blocks in use at each future point, updated as sequences are admitted."""

    def __init__(self, pool: Pool, errors: LengthErrors) -> None:
        self._ledger = pool.ledger
        live = _Columns.of(pool.live.values())
        self.survival = errors.survival(bins_of(live.generated, live.medians, live.spreads))
        self._pool = pool
        self._mean = _mean_use(live, self.survival, self._ledger.block_size).sum(axis=0)
        self._mean += pool.num_inherited

    def admit(self, candidates: list[Sequence], horizons: list[float]) -> list[Sequence]:
        """Add the candidates before the first one that does not fit; returns the added candidates.

        `horizons[i]` is the number of pipeline turns for which candidate i must fit.
        """
        if not candidates:
            return []
        shared = self._pool.prefix_cache.shares(candidates)
        rows = _Columns.of(candidates)._replace(shared=np.fromiter(shared, np.float64))
        more = _mean_use(rows, self.survival, self._ledger.block_size)
        mean = self._mean + more.cumsum(axis=0)
        planned = np.maximum(np.array(horizons), POINTS[0])[:, None] >= POINTS
        fits = ((mean <= self._ledger.num_blocks) | ~planned).all(axis=1)
        number = int(len(candidates) if fits.all() else fits.argmin())
        if number:
            self._mean = mean[number - 1]
        return candidates[:number]


class _Columns(NamedTuple):
    """Columns [sequences] in tokens, except `spreads`, which are of the logarithm of the length.

    `shared` is the number of blocks that count for other sequences.
    """

    generated: Floats
    medians: Floats
    spreads: Floats
    lengths: Floats
    longest: Floats
    shared: Floats

    @classmethod
    def of(cls, sequences: Iterable[Sequence]) -> "_Columns":
        """Read the generated tokens, expected median and spread, current and maximum length."""
        rows = [
            (
                len(s.token_ids) - s.num_prompt_tokens,
                s.expected.median,
                s.expected.spread,
                len(s.token_ids),
                s.longest_len,
                s.num_shared,
            )
            for s in sequences
        ]
        return cls(*np.array(rows, dtype=np.float64).reshape(-1, 6).T)


def _mean_use(rows: _Columns, survival: Floats, block_size: int) -> Floats:
    """Mean number of each sequence's blocks at each point, [sequences, points]."""
    generated, medians, spreads = rows.generated, rows.medians, rows.spreads
    later = survival[bins_of(generated[:, None] + POINTS, medians[:, None], spreads[:, None])]
    now = survival[bins_of(generated, medians, spreads)]
    chance = later / np.maximum(now, 1e-12)[:, None]
    held = rows.lengths[:, None] + POINTS
    chance = np.where(held <= rows.longest[:, None], chance, 0.0)
    chance[:, 0] = 1.0  # no sequence ends before the next step
    mean: Floats = chance * (np.ceil(held / block_size) - rows.shared[:, None])
    return mean

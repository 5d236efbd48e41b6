"""Correction: the cost model follows what the stages report while they serve.

A profile is taken in a few seconds, before there is company on the machine, over contexts that
nobody asked for. So each stage's steps are compared with what was measured for their size: the
median of real / measured over the newest steps of about one size corrects that size. It is robust,
since a single slow step moves no median, and bounded, since no factor beyond `MOST` is believed.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from engine.costs.cost_model import CostModel, Floats, StepSize

MOST = 4.0
"""No stage is taken to be so many times slower or faster than measured."""
# Sizes are told apart by powers of two of their tokens.
NUM_BUCKETS = 14
_POINTS: Floats = np.exp2(np.arange(NUM_BUCKETS, dtype=np.float64))
# Steps of a bucket that are remembered, and from how many on it has a factor of its own.
_WINDOW, _ENOUGH = 64, 8
# Steps over which the ratio is taken that is shown.
_SHOWN = 256
# Steps are forgotten oldest first beyond this: a stage tells of them twice a second.
_MOST_OPEN = 10_000
# Factors that have changed by less than this part are left as they are, and looked at so often.
_TOLERANCE, _INTERVAL_S = 0.05, 2.0


class StageCorrection:
    """One stage's measured costs, and how its steps differ from them."""

    def __init__(self, measured: CostModel) -> None:
        self.model = measured
        self._measured = measured
        self._ratios = [deque[float](maxlen=_WINDOW) for _ in range(NUM_BUCKETS)]
        self._factors = np.ones(NUM_BUCKETS)
        self._shown = deque[tuple[float, float]](maxlen=_SHOWN)

    def observe(self, size: StepSize, seconds: float) -> None:
        """A step of this size took so many seconds; nonsense is left out."""
        if not 0 < seconds < float("inf"):
            return
        bucket = min(NUM_BUCKETS, size.num_tokens.bit_length()) - 1
        self._ratios[bucket].append(seconds / max(1e-9, self._measured.step_s(size)))
        self._shown.append((self.model.step_s(size), seconds))

    @property
    def ratio(self) -> float:
        """Predicted over real seconds of the newest steps; 0 before any."""
        if not self._shown:
            return 0.0
        predicted, real = map(sum, zip(*self._shown, strict=True))
        return predicted / real

    def factors(self) -> Floats:
        """Real over measured at 1, 2, 4, ... tokens, within `MOST`; 1 where too little is known.

        Sizes of which too few steps are known take the factor of the nearest size that has one.
        """
        known = [i for i, ratios in enumerate(self._ratios) if len(ratios) >= _ENOUGH]
        if not known:
            return np.ones(NUM_BUCKETS)
        medians = [float(np.median(self._ratios[i])) for i in known]
        factors = np.interp(np.arange(NUM_BUCKETS), known, medians)
        return np.clip(factors, 1 / MOST, MOST)

    def update(self) -> bool:
        """Correct the model if a factor has changed for good."""
        factors = self.factors()
        if (abs(factors / self._factors - 1) <= _TOLERANCE).all():
            return False
        self._factors = factors
        self.model = self._measured.scaled(_POINTS, factors)
        return True


class Correction:
    """The cost model that the policies hold, and all stages' corrections to it."""

    def __init__(self, stages: dict[int, CostModel]) -> None:
        self._stages = {stage: StageCorrection(model) for stage, model in stages.items()}
        self.cost = CostModel.slowest(list(stages.values()))
        self._sizes: dict[int, StepSize] = {}
        self._next_update_at = 0.0

    def launch(self, step_id: int, size: StepSize) -> None:
        """Note a step, for when the stages tell what it took."""
        self._sizes[step_id] = size
        if len(self._sizes) > _MOST_OPEN:
            del self._sizes[next(iter(self._sizes))]

    def observe(
        self, stage: int, step_ids: Sequence[int], seconds: Sequence[float], now: float
    ) -> None:
        """What steps have taken on a stage. Steps that are not known are left out."""
        correction = self._stages.get(stage)
        if correction is None:
            return
        for step_id, took_s in zip(step_ids, seconds, strict=True):
            size = self._sizes.get(step_id)
            if size is not None:
                correction.observe(size, took_s)
        if now >= self._next_update_at:
            self._next_update_at = now + _INTERVAL_S
            self._update()

    def ratios(self) -> dict[int, float]:
        """Predicted over real seconds of each stage's newest steps; 0 before any."""
        return {stage: correction.ratio for stage, correction in self._stages.items()}

    def _update(self) -> None:
        changed = [c.update() for c in self._stages.values()]
        if any(changed):
            models = [correction.model for correction in self._stages.values()]
            self.cost.become(CostModel.slowest(models))

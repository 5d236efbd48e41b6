"""Correction: adapts the cost model to the step times that the stages report in service.

A profile is measured in a few seconds, before other load runs on the machine, and with synthetic
contexts. Therefore the steps of each stage are compared with the profile: each size is corrected
by the median of real / profiled seconds over the newest steps of about that size. A single slow
step does not move the median, and factors are clipped to `1 / MAX_FACTOR` .. `MAX_FACTOR`.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from engine.costs.cost_model import CostModel, Floats, StepSize

MAX_FACTOR = 4.0
"""Largest factor by which a stage can be slower or faster than its profile."""
# Step sizes are grouped by powers of two of their tokens.
NUM_BUCKETS = 14
_POINTS: Floats = np.exp2(np.arange(NUM_BUCKETS, dtype=np.float64))
# Steps kept per bucket, and the fewest steps with which a bucket has its own factor.
_WINDOW, _MIN_SAMPLES = 64, 8
# Steps over which the exported ratio (`StageStats.cost_ratio`) is computed.
_RATIO_WINDOW = 256
# Launched steps kept until the stages report them (twice a second); the oldest are dropped first.
_MAX_OPEN = 10_000
# The factors are recomputed at this interval, and applied if one has changed by more than 5 %.
_TOLERANCE, _INTERVAL_S = 0.05, 2.0


class StageCorrection:
    """The profiled costs of one stage, corrected by its reported steps."""

    def __init__(self, measured: CostModel) -> None:
        self.model = measured
        self._measured = measured
        self._ratios = [deque[float](maxlen=_WINDOW) for _ in range(NUM_BUCKETS)]
        self._factors = np.ones(NUM_BUCKETS)
        self._recent = deque[tuple[float, float]](maxlen=_RATIO_WINDOW)

    def observe(self, size: StepSize, seconds: float) -> None:
        """Record the seconds of a step. Values that are not positive and finite are ignored."""
        if not 0 < seconds < float("inf"):
            return
        bucket = min(NUM_BUCKETS, size.num_tokens.bit_length()) - 1
        self._ratios[bucket].append(seconds / max(1e-9, self._measured.step_s(size)))
        self._recent.append((self.model.step_s(size), seconds))

    @property
    def ratio(self) -> float:
        """Predicted / real seconds over the newest steps; 0 before the first step."""
        if not self._recent:
            return 0.0
        predicted, real = map(sum, zip(*self._recent, strict=True))
        return predicted / real

    def factors(self) -> Floats:
        """Real / profiled seconds at 1, 2, 4, ... tokens [NUM_BUCKETS]; 1 if steps are too few.

        Buckets with too few steps are interpolated between those that have enough.
        """
        known = [i for i, ratios in enumerate(self._ratios) if len(ratios) >= _MIN_SAMPLES]
        if not known:
            return np.ones(NUM_BUCKETS)
        medians = [float(np.median(self._ratios[i])) for i in known]
        factors = np.interp(np.arange(NUM_BUCKETS), known, medians)
        return np.clip(factors, 1 / MAX_FACTOR, MAX_FACTOR)

    def update(self) -> bool:
        """Correct the model if necessary; returns whether it was corrected.

        It is corrected if a factor has changed by more than the tolerance.
        """
        factors = self.factors()
        if (abs(factors / self._factors - 1) <= _TOLERANCE).all():
            return False
        self._factors = factors
        self.model = self._measured.scaled(_POINTS, factors)
        return True


class Correction:
    """The cost model that the policies use, and the corrections of all stages.

    `stages` has the profiled costs by stage; `cost` has those of the slowest stage at each size.
    """

    def __init__(self, stages: dict[int, CostModel], num_slices: int = 1) -> None:
        """Each stage reports a step `num_slices` times, for each of its virtual stages."""
        self._stages = {stage: StageCorrection(model) for stage, model in stages.items()}
        self._num_slices = num_slices
        self._parts: dict[tuple[int, int], list[float]] = {}  # of steps not wholly reported
        self.cost = CostModel.slowest(list(stages.values()))
        self._sizes: dict[int, StepSize] = {}
        self._next_update_at = 0.0

    def launch(self, step_id: int, size: StepSize) -> None:
        """Store the size of a step until the stages report its seconds."""
        self._sizes[step_id] = size
        if len(self._sizes) > _MAX_OPEN:
            del self._sizes[next(iter(self._sizes))]

    def observe(
        self, stage: int, step_ids: Sequence[int], seconds: Sequence[float], now: float
    ) -> None:
        """Record the seconds of steps, or of slices, on a stage.

        Unknown stages and steps are ignored.
        """
        correction = self._stages.get(stage)
        if correction is None:
            return
        for step_id, slice_s in zip(step_ids, seconds, strict=True):
            size = self._sizes.get(step_id)
            took_s = self._whole_s(stage, step_id, slice_s)
            if size is not None and took_s is not None:
                correction.observe(size, took_s)
        if now >= self._next_update_at:
            self._next_update_at = now + _INTERVAL_S
            self._update()

    def _whole_s(self, stage: int, step_id: int, slice_s: float) -> float | None:
        """The seconds of the whole step; None while slices are missing."""
        if self._num_slices == 1:
            return slice_s
        parts = self._parts.setdefault((stage, step_id), [])
        parts.append(slice_s)
        if len(self._parts) > _MAX_OPEN:
            del self._parts[next(iter(self._parts))]
        if len(parts) < self._num_slices:
            return None
        del self._parts[stage, step_id]
        return sum(parts)

    def ratios(self) -> dict[int, float]:
        """Predicted / real seconds of the newest steps by stage; 0 before the first step."""
        return {stage: correction.ratio for stage, correction in self._stages.items()}

    def _update(self) -> None:
        changed = [c.update() for c in self._stages.values()]
        if any(changed):
            models = [correction.model for correction in self._stages.values()]
            self.cost.become(CostModel.slowest(models))

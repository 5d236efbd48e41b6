"""Goodput: the highest rate at which a share of all requests meets both targets.

The rate is searched by doubling and then by bisection. Attainment need not fall with the rate:
EcoServe's algorithm met 90 % at 8 and at 26 requests/s, and 89 % at 15. So a rate that is missed
ends the doubling only if four more are missed as well, up to twice as high.
A run ends as soon as too many requests have missed a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor

from benchmarks.virtual.macro.systems import Cluster, Disaggregated, System, Traffic
from simulator.arrival import SequenceTimes, Targets

TOLERANCE = 0.05
"""The rate is found to this fraction of itself."""
FIRST_RATE_PER_GPU = 0.25
STEPS = tuple(2.0 ** (1 + i / 4) for i in range(5))
"""Which multiples of a rate that is met are tried next."""


@dataclass(frozen=True, slots=True)
class TooManyMissed:
    """Whether more requests than allowed have missed a target already."""

    targets: Targets
    most_missed: int

    def __call__(self, sequences: Sequence[SequenceTimes], now: float) -> bool:
        """See `simulate_macro`."""
        missed = 0
        for times in sequences:
            if times.arrived_at > now:
                break
            missed += self.targets.are_missed(times, now)
        return missed > self.most_missed


class Search:
    """The goodput of a system in a cluster, at one attainment (0 to 1)."""

    def __init__(
        self, system: System | Disaggregated, cluster: Cluster, traffic: Traffic, attainment: float
    ) -> None:
        self._system, self._cluster = system, cluster
        self._traffic, self._attainment = traffic, attainment
        self._num_prefill = max(1, cluster.num_instances // 2)

    def goodput(self) -> float:
        """Requests per second; 0 if not even a hundredth of the first rate is served in time."""
        low, high = 0.0, FIRST_RATE_PER_GPU * self._cluster.num_gpus * self._cluster.num_instances
        first = high
        if self._is_met(high):
            while met := next((s for s in STEPS if self._is_met(s * high)), None):
                high *= met
            low, high = high, STEPS[0] * high
        else:
            while high > first / 100 and not self._is_met(high / 2):
                high /= 2
            low = high / 2 if high > first / 100 else 0.0
        while low and high / low > 1 + TOLERANCE:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self._is_met(middle) else (low, middle)
        return low

    def _is_met(self, rate: float) -> bool:
        traffic = replace(self._traffic, rate=rate)
        targets = traffic.workload.targets
        count = traffic.workload.num_arrivals(rate) * traffic.workload.num_turns
        hopeless = TooManyMissed(targets, floor((1 - self._attainment) * count))
        if isinstance(self._system, System):
            run = self._system.run(self._cluster, traffic, hopeless)
            return _share(run.sequences, targets) >= self._attainment
        for num_prefill in self._divisions():
            run = self._system.run_divided(self._cluster, traffic, num_prefill, hopeless)
            if _share(run.sequences, targets) >= self._attainment:
                self._num_prefill = num_prefill
                return True
        return False

    def _divisions(self) -> list[int]:
        """The numbers of prefill instances, the one that was best at the last rate first."""
        numbers = range(1, self._cluster.num_instances)
        return sorted(numbers, key=lambda number: abs(number - self._num_prefill))


def _share(sequences: Sequence[SequenceTimes], targets: Targets) -> float:
    return sum(map(targets.are_met, sequences)) / len(sequences)

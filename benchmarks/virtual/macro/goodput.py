"""Goodput: the highest rate at which a share of all requests meets both targets.

The rate is searched by doubling and then by bisection. A run ends as soon as too many requests have
missed a target. Attainment need not fall with the rate: EcoServe's algorithm met 90 % at 4 and at
28 requests/s, but 85 to 89 % from 8 to 16. So a rate that is only just missed does not end the
search: the next ones above it are tried, until one is missed by far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor

from benchmarks.virtual.macro.systems import Cluster, Disaggregated, System, Traffic
from simulator.arrival import SequenceTimes, Targets
from simulator.macro.simulation import MacroRun

TOLERANCE = 0.05
"""The rate is found to this fraction of itself."""
FIRST_RATE_PER_GPU = 0.25
STEP = 2**0.25
"""From a rate that was only just missed to the next one."""
MOST_STEPPED = 8
"""So many times the last rate that was met are tried."""
JUST_MISSED = 0.6
"""Of the arrivals that have come before too many have missed a target."""


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
            while (met := self._next_met(high)) is not None:
                high = met
            low, high = high, 2 * high
        else:
            while high > first / 100 and not self._is_met(high / 2):
                high /= 2
            low = high / 2 if high > first / 100 else 0.0
        while low and high / low > 1 + TOLERANCE:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self._is_met(middle) else (low, middle)
        return low

    def _next_met(self, rate: float) -> float | None:
        """A rate that is met, at least twice this one; None if there is none."""
        higher = 2 * rate
        while (served := self._served(higher)) < 1:
            higher *= STEP
            if served < JUST_MISSED or higher > MOST_STEPPED * rate:
                return None
        return higher

    def _is_met(self, rate: float) -> bool:
        return self._served(rate) == 1

    def _served(self, rate: float) -> float:
        """The part of the arrivals that had come when too many had missed; 1 if the rate is met."""
        traffic = replace(self._traffic, rate=rate)
        targets = traffic.workload.targets
        count = traffic.workload.num_arrivals(rate) * traffic.workload.num_turns
        hopeless = TooManyMissed(targets, floor((1 - self._attainment) * count))
        if isinstance(self._system, System):
            return self._share(self._system.run(self._cluster, traffic, hopeless), targets)
        best = 0.0
        for num_prefill in self._divisions():
            run = self._system.run_divided(self._cluster, traffic, num_prefill, hopeless)
            best = max(best, self._share(run, targets))
            if best == 1:
                self._num_prefill = num_prefill
                break
        return best

    def _share(self, run: MacroRun, targets: Targets) -> float:
        times = run.sequences
        if sum(map(targets.are_met, times)) >= self._attainment * len(times):
            return 1.0
        num_come = sum(each.arrived_at <= run.makespan_s for each in times)
        return min(num_come / len(times), 1 - 1 / len(times))

    def _divisions(self) -> list[int]:
        """The numbers of prefill instances, the one that was best at the last rate first."""
        numbers = range(1, self._cluster.num_instances)
        return sorted(numbers, key=lambda number: abs(number - self._num_prefill))

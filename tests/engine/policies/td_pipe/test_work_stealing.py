"""Work stealing: the example of the paper, and its sliding window against exact counts (3.4)."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from configs.config import EngineConfig
from engine.policies.td_pipe.work_stealing import average_rows
from tests.engine.world import World, make_submit
from wire.messages import Step


class SlidingWindow:
    """The method of the paper: the total is the last S micro-batches plus the withheld rows."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = deque(sizes, maxlen=len(sizes))
        self.withheld = 0

    @property
    def returning(self) -> int:
        """Rows of the micro-batch that returns next."""
        return self._sizes[0]

    def next_size(self, num_finished: int) -> int:
        """The rows that are launched when it has returned without the finished ones."""
        total = sum(self._sizes) + self.withheld - num_finished
        idle = self.returning - num_finished + self.withheld
        size = min(idle, -(-total // len(self._sizes)))
        self.withheld = idle - size
        self._sizes.append(size)
        return size


class Ledger:
    """Our method: the number of live sequences is known."""

    def __init__(self, sizes: list[int]) -> None:
        self.num_live = sum(sizes)
        self.in_flight = deque(sizes)

    def next_size(self, num_finished: int) -> int:
        self.in_flight.popleft()
        self.num_live -= num_finished
        num_idle = self.num_live - sum(self.in_flight)
        size = average_rows(num_idle, self.num_live, len(self.in_flight) + 1)
        self.in_flight.append(size)
        return size


# Of four micro-batches of 128 the first loses 48 and the second 8.
FINISHED = [48, 8, 0, 0, 0, 0, 0, 0]
SIZES = [80, 114, 114, 114, 114, 114, 114, 114]
WITHHELD = [0, 6, 20, 34, 0, 0, 0, 0]


def test_the_ledger_launches_the_micro_batches_of_the_paper_s_example() -> None:
    ledger = Ledger([128] * 4)
    assert [ledger.next_size(finished) for finished in FINISHED] == SIZES


def test_the_sliding_window_launches_the_micro_batches_of_the_paper_s_example() -> None:
    window = SlidingWindow([128] * 4)
    assert [(window.next_size(f), window.withheld) for f in FINISHED] == list(
        zip(SIZES, WITHHELD, strict=True)
    )


def test_the_engine_launches_the_micro_batches_of_the_paper_s_example() -> None:
    config = EngineConfig.of(
        policy="td-pipe",
        pipeline_parallel_size=4,
        prefill_ahead=1,
        prefill_batch_tokens=512,
        predicted_output_len=5,
    )
    world = World(config, 1000)
    for i in range(4):  # while these are fed, the others queue and are then fed in one step
        world.submit(make_submit(1000 + i, [1], 1, stop=False))
    # Sequences are distributed round-robin; those that end early do so with their first decode.
    early = {*range(0, 4 * 48, 4), *range(1, 4 * 8, 4)}
    for i in range(512):
        world.submit(make_submit(i, [1 + i % 49], 2 if i in early else 5, stop=False))
    world.run_dry()
    steps = [m for _, _, answer in world.events for m in answer if isinstance(m, Step)]
    sizes = [len(step.samples) for step in steps if step.phase == "decode"]
    assert sizes[:12] == [128] * 4 + SIZES
    assert world.scheduler.counters.steals == 34


def test_a_micro_batch_below_the_average_takes_all_idle_sequences() -> None:
    assert average_rows(num_idle=80, num_live=464, num_stages=4) == 80


def test_a_micro_batch_above_the_average_is_reduced_to_it() -> None:
    assert average_rows(num_idle=120, num_live=456, num_stages=4) == 114


def test_the_average_is_rounded_up_to_rows() -> None:
    assert average_rows(num_idle=9, num_live=9, num_stages=4) == 3


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    ends=st.lists(st.integers(0, 40), max_size=30),
)
def test_window_and_ledger_launch_the_same_micro_batches(sizes: list[int], ends: list[int]) -> None:
    ledger, window = Ledger(sizes), SlidingWindow(sizes)
    for end in ends:
        finished = min(end, window.returning)
        assert ledger.next_size(finished) == window.next_size(finished)
    assert ledger.num_live == sum(ledger.in_flight) + window.withheld


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_if_none_ends_all_run_within_two_turns_and_none_above_the_average(
    sizes: list[int],
) -> None:
    ledger = Ledger(sizes)
    launched = [ledger.next_size(0) for _ in range(2 * len(sizes))][len(sizes) :]
    assert sum(launched) == sum(sizes)
    assert max(launched) == -(-sum(sizes) // len(sizes))

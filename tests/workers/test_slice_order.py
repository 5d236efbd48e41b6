"""The slice order: Megatron's with equal steps, and no stage waits in vain with any steps."""

from heapq import heappop, heappush

from hypothesis import given
from hypothesis import strategies as st

from workers.slice_order import PATIENCE, SliceOrder

Ran = list[tuple[int, int, float, float]]
"""What a stage has run: slice, step, begin and end."""


def run(
    seconds: list[list[float]], num_slices: int, in_flight: int, hops_s: list[float]
) -> list[Ran]:
    """Run steps of `seconds[step][stage]` per slice; what each of the stages has run.

    `hops_s` are the times to the next stage, used in turn. A step begins when fewer than
    `in_flight` are on their way.
    """
    num_stages = len(seconds[0])
    orders = [SliceOrder(num_slices, None if i else num_stages) for i in range(num_stages)]
    patience_s = 0.0
    ran: list[Ran] = [[] for _ in range(num_stages)]
    free_at = [0.0] * num_stages
    arrived_at: dict[tuple[int, int, int], float] = {}
    last_arrival: dict[tuple[int, int], float] = {}
    events: list[tuple[float, int, int, int, int]] = []  # time, kind, stage, slice, step
    num_begun = num_sent = 0

    def begin(now: float) -> None:
        nonlocal num_begun
        if num_begun < len(seconds):
            heappush(events, (now, 0, 0, 0, num_begun))
            num_begun += 1

    list(map(begin, [0.0] * in_flight))
    while events:
        now, kind, stage, slice_index, step = heappop(events)
        if kind == 0:
            orders[stage].arrive(slice_index, step)
            arrived_at[stage, slice_index, step] = now
            heappush(events, (now, 1, stage, 0, 0))
            continue
        if free_at[stage] > now:
            continue
        if orders[stage].is_early and now < free_at[stage] + patience_s:
            heappush(events, (free_at[stage] + patience_s, 1, stage, 0, 0))
            continue
        if (chosen := orders[stage].take()) is None:
            continue
        slice_index, step = chosen
        if stage == 0:
            patience_s = PATIENCE * seconds[step][stage]
        ended_at = free_at[stage] = now + seconds[step][stage]
        ran[stage].append((slice_index, step, now, ended_at))
        heappush(events, (ended_at, 1, stage, 0, 0))
        to = divmod(slice_index * num_stages + stage + 1, num_stages)[::-1]  # stage and slice
        if to[1] == num_slices:
            begin(ended_at)
            continue
        # Links keep the order, whatever a transfer takes.
        at = max(ended_at + hops_s[num_sent % len(hops_s)], last_arrival.get(to, 0.0))
        last_arrival[to] = at
        num_sent += 1
        heappush(events, (at, 0, *to, step))
    check_no_idle_stage(ran, arrived_at)
    return ran


def check_no_idle_stage(ran: list[Ran], arrived_at: dict[tuple[int, int, int], float]) -> None:
    """Each slice began when it had arrived and the stage was free, or a little later."""
    for stage, own in enumerate(ran):
        free_at = waits_s = 0.0
        for slice_index, step, began_at, ended_at in own:
            at = max(free_at, arrived_at[stage, slice_index, step])
            is_first = stage == slice_index == 0
            assert at <= began_at <= max(at, free_at + waits_s * is_first)
            free_at, waits_s = ended_at, PATIENCE * (ended_at - began_at) * 1.001


def test_with_equal_steps_it_is_the_interleaved_order_of_megatron() -> None:
    ran = run([[1.0] * 3] * 9, num_slices=2, in_flight=9, hops_s=[0.03125])
    expected = [(i, 3 * group + m) for group in range(3) for i in range(2) for m in range(3)]
    for stage, own in enumerate(ran):
        assert [(slice_index, step) for slice_index, step, _, _ in own] == expected
        ended_at = own[-1][3]
        assert stage + 18 < ended_at < stage + 18 + 0.6


def test_the_oldest_step_that_has_arrived_goes_first() -> None:
    order = SliceOrder(3)
    assert order.take() is None
    order.arrive(0, 8)
    order.arrive(0, 9)
    order.arrive(2, 7)
    order.arrive(1, 8)  # cannot be, as 8 has not run on slice 0; the oldest goes first anyway
    assert [order.take() for _ in range(5)] == [(2, 7), (0, 8), (1, 8), (0, 9), None]


@given(data=st.data())
def test_with_any_step_sizes_every_step_ends_and_each_slice_runs_them_in_order(
    data: st.DataObject,
) -> None:
    num_stages, num_slices = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    of_step = st.lists(st.floats(0.01, 10), min_size=num_stages, max_size=num_stages)
    seconds = data.draw(st.lists(of_step, min_size=1, max_size=12))
    hops_s = data.draw(st.lists(st.floats(0, 5), min_size=1, max_size=5))
    in_flight = data.draw(st.integers(1, 2 * num_stages))
    for own in run(seconds, num_slices, in_flight, hops_s):
        assert len(own) == num_slices * len(seconds)
        for i in range(num_slices):
            assert [step for slice_index, step, _, _ in own if slice_index == i] == list(
                range(len(seconds))
            )
        for step in range(len(seconds)):
            assert [i for i, other, _, _ in own if other == step] == list(range(num_slices))

"""The results: in order, each once, as soon as they are there, and never of another step."""

from array import array

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.device_fakes import FakeGpu
from wire.messages import Step, StepDone
from workers.comm.transport import StepCheck, TransportError
from workers.device.host_copy import HostCopy, to_host
from workers.results import Result, Results
from workers.sampling.sampler import Sampled


class World:
    """The last stage on a fake GPU, and what the engine and the heartbeat get from it."""

    def __init__(self, most: int) -> None:
        self.gpu, self.sent = FakeGpu(), list[StepDone]()
        self.spans: list[tuple[int, float, float]] = []
        self.results = Results(self.sent.append, lambda *span: self.spans.append(span), most)

    def launch(self, step_id: int, arrived: int | None = None) -> None:
        """Launch a step that samples its id; `arrived` is the id of its activations."""
        check = StepCheck(1, step_id, self._copy(step_id if arrived is None else arrived))
        sampled = Sampled(self._copy(step_id, torch.int32))
        step = Step(1, step_id, "decode", *(b"",) * 6)
        self.results.add(Result(step, float(step_id), sampled, (), check))

    def _copy(self, number: int, dtype: torch.dtype = torch.int64) -> HostCopy:
        host, event = torch.zeros(1, dtype=dtype), self.gpu.event()
        self.gpu.copy(host, torch.tensor([number], dtype=dtype))
        event.record()
        return HostCopy(host, event)

    @property
    def reported(self) -> list[int]:
        """The ids of the steps that the engine knows; their tokens are their own."""
        assert all(done.token_ids == array("i", [done.step_id]).tobytes() for done in self.sent)
        assert [span[0] for span in self.spans] == [done.step_id for done in self.sent]
        return [done.step_id for done in self.sent]


# None: a step is launched; a number: the device does so many of its operations.
@given(events=st.lists(st.none() | st.integers(0, 9), max_size=40), most=st.integers(0, 4))
def test_steps_are_reported_in_order_and_no_more_than_allowed_are_open(
    events: list[int | None], most: int
) -> None:
    world, num_launched = World(most), 0
    for event in events:
        if event is None:
            world.launch(num_launched)
            num_launched += 1
        else:
            for _ in range(min(event, len(world.gpu.queue))):
                world.gpu.queue.pop(0)()
            world.results.send_finished()
            assert not world.gpu.queue or len(world.results) <= most
        assert world.reported == list(range(len(world.reported)))
        assert num_launched - len(world.reported) == len(world.results) <= most
    world.gpu.run()
    world.results.send_finished()
    assert world.reported == list(range(num_launched))


def test_the_times_of_steps_that_are_launched_early_do_not_overlap() -> None:
    world = World(3)
    for step_id in range(3):
        world.launch(step_id)
    world.gpu.run()
    world.results.send_finished()
    for (_, _, ended_at), (_, began_at, _) in zip(world.spans, world.spans[1:], strict=False):
        assert began_at >= ended_at


def test_a_step_with_the_activations_of_another_is_not_reported() -> None:
    world = World(3)
    world.launch(4)
    world.launch(5, arrived=6)
    world.gpu.run()
    with pytest.raises(TransportError, match="stage 1 got step 6, not step 5"):
        world.results.send_finished()
    assert world.reported == [4]
    assert world.results.oldest_step_id == 5


def test_a_step_waits_for_its_check() -> None:
    world = World(3)
    ids = Sampled(HostCopy(torch.zeros(1, dtype=torch.int32)))  # they are there
    check = StepCheck(1, 5, world._copy(6))
    world.results.add(Result(Step(1, 5, "decode", *(b"",) * 6), 0.0, ids, (), check))
    assert not world.sent
    world.gpu.run()
    with pytest.raises(TransportError):
        world.results.send_finished()
    assert not world.sent


def test_a_stage_without_messages_reports_what_gets_done() -> None:
    world = World(3)
    world.launch(1)
    world.launch(2)
    looks = []

    def nothing_comes(timeout_s: float) -> bool:
        looks.append(timeout_s)
        world.gpu.queue.pop(0)()  # the device goes on
        return False

    assert not world.results.wait(nothing_comes, 9.0)
    assert world.reported == [1, 2]
    assert set(looks) == {0}  # it has not waited for a message
    assert not world.results.wait(lambda timeout_s: timeout_s == 0, 9.0)


def test_a_message_is_taken_before_the_device_has_finished() -> None:
    world = World(3)
    world.launch(1)
    assert world.results.wait(lambda _: True, 9.0)
    assert not world.reported


def test_a_cpu_s_results_are_sent_at_once() -> None:
    world = World(8)
    ids = to_host(torch.tensor([7], dtype=torch.int32))
    step = Step(1, 7, "decode", *(b"",) * 6)
    world.results.add(Result(step, 0.0, Sampled(ids), (), StepCheck(0, 7, None)))
    assert world.reported == [7]
    assert not len(world.results)
    assert world.results.oldest_step_id is None

"""The device's work: it computes from the arrival of a step's input to its end."""

from tests.workers.device_fakes import FakeGpu
from workers.device.events import DONE
from workers.device.work import DeviceWork


def test_a_device_waits_for_the_input_of_its_first_step_only() -> None:
    gpu = FakeGpu()
    work = DeviceWork(gpu.event)
    assert work.doing() is None
    for _ in range(2):  # each: the input arrives, begun, the layers, ended
        gpu.queue.append(lambda: None)
        work.begin()
        gpu.queue.append(lambda: None)
        work.end()
    seen = [work.doing()]
    while gpu.queue:
        gpu.queue.pop(0)()
        seen.append(work.doing())
    one_step = ["waits", "computes", "computes"]
    assert seen == ["waits", *one_step, "waits", *one_step, None]


def test_a_device_that_has_failed_does_nothing() -> None:
    class Broken:
        def record(self) -> None:
            """As of `Event`."""

        def synchronize(self) -> None:
            """As of `Event`."""

        def query(self) -> bool:
            raise RuntimeError("an illegal memory access was encountered")

    work = DeviceWork(Broken)
    work.begin()
    work.end()
    assert work.doing() is None


def test_a_cpu_has_always_finished() -> None:
    work = DeviceWork(lambda: DONE)
    for _ in range(3):
        work.begin()
        work.end()
        assert work.doing() is None
    assert len(work._steps) == 1

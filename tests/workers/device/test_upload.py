"""The upload: what arrives is what was sent, however late the device reads it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.device_fakes import FakeGpu
from tests.workers.world import CPU
from workers.device.upload import ALIGNMENT, NUM_BUFFERS, PackedUpload, layout, share, to_device


def packed_upload(gpu: FakeGpu) -> PackedUpload:
    """The upload of a GPU, to the fake one."""
    return PackedUpload(CPU, make_event=gpu.event, copy=gpu.copy, pinned=False)


def make(number: int, sizes: list[int]) -> dict[str, np.ndarray]:
    """Arrays of both types, full of numbers of their own."""
    return {
        f"array {i}": np.arange(size, dtype=(np.int32, np.int64)[i % 2]) + 1000 * number
        for i, size in enumerate(sizes)
    }


@given(steps=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=5), max_size=30))
def test_arrays_arrive_as_they_were_sent(steps: list[list[int]]) -> None:
    gpu = FakeGpu()
    upload = packed_upload(gpu)
    sent = [make(number, sizes) for number, sizes in enumerate(steps)]
    arrived = [upload(arrays) for arrays in sent]
    assert gpu.num_copies == len(steps)
    gpu.run()
    for arrays, tensors in zip(sent, arrived, strict=True):
        assert list(tensors) == list(arrays)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor.numpy(), arrays[name])
            assert tensor.numpy().dtype == arrays[name].dtype
        offsets, _ = layout(arrays)
        assert not any(offset % ALIGNMENT for offset in offsets.values())


def test_a_buffer_is_written_again_only_when_it_has_been_read() -> None:
    gpu = FakeGpu()
    upload = packed_upload(gpu)
    arrived = [upload(make(number, [5])) for number in range(NUM_BUFFERS)]
    assert len(gpu.queue) == 2 * NUM_BUFFERS  # nothing has waited
    upload(make(99, [5]))
    assert arrived[0]["array 0"].tolist() == [0, 1, 2, 3, 4]
    assert len(gpu.queue) == 2 * NUM_BUFFERS  # only the first copy had to be done
    gpu.run()
    assert arrived[-1]["array 0"].tolist()[0] == 1000 * (NUM_BUFFERS - 1)


def test_static_memory_is_filled_in_place() -> None:
    gpu, static = FakeGpu(), torch.zeros(256, dtype=torch.uint8)
    upload = packed_upload(gpu)
    (tensor,) = upload(make(3, [4]), static).values()
    assert tensor.data_ptr() == static.data_ptr()
    gpu.run()
    assert static.view(torch.int32)[:5].tolist() == [3000, 3001, 3002, 3003, 0]


def test_on_a_cpu_nothing_is_copied() -> None:
    arrays = make(1, [3, 4])
    for name, tensor in share(arrays).items():
        assert np.shares_memory(tensor.numpy(), arrays[name])
    with pytest.raises(AssertionError):
        share(arrays, torch.zeros(8, dtype=torch.uint8))
    assert np.shares_memory(to_device(arrays["array 0"], CPU).numpy(), arrays["array 0"])

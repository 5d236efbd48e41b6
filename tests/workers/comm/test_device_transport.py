"""The transport of devices that receive by themselves (NCCL), with fakes: what is queued where."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.world import CPU
from workers.comm import transport as module
from workers.comm.transport import Transport, TransportError

HIDDEN = 8


class Wires:
    """torch.distributed and its streams: what was posted, on which stream, and what arrives."""

    def __init__(self, stage: int, num_stages: int) -> None:
        self.log: list[str] = []
        self.sent: list[Tensor] = []
        self.arriving: list[Tensor] = []
        self._at, self._stage, self._num_stages = "layers", stage, num_stages
        self._buffers: list[Tensor] = []

    def dist(self) -> Any:
        """The part of torch.distributed that the transport uses."""
        return SimpleNamespace(
            get_rank=lambda: self._stage,
            get_world_size=lambda: self._num_stages,
            get_backend=lambda: "nccl",
            new_group=lambda ranks, **_: tuple(ranks),
            irecv=self._irecv,
            isend=self._isend,
        )

    def _irecv(self, buffer: Tensor, source: int, group: object, tag: int) -> Any:
        assert group == (source, self._stage)
        self.log.append(f"receive {tag} on {self._at}")
        return SimpleNamespace(wait=lambda: self._arrive(buffer, tag))

    def _arrive(self, buffer: Tensor, tag: int) -> None:
        self.log.append(f"{self._at} waits for {tag}")
        buffer.copy_(self.arriving.pop(0))

    def _isend(self, packed: Tensor, target: int, group: object, tag: int) -> Any:
        assert group == (self._stage, target)
        self.log.append(f"send {tag} on {self._at}")
        self.sent.append(packed.clone())
        return SimpleNamespace(wait=lambda: self.log.append(f"{self._at} waits for sent {tag}"))

    @contextmanager
    def _on(self, stream: str) -> Iterator[None]:
        self._at, before = stream, self._at
        yield
        self._at = before

    def receiving(self) -> Any:
        """The stream of receives."""
        return self._on("receiving")

    def sending(self) -> Any:
        """The stream of sends."""
        self.log.append("sending waits for layers")
        return self._on("sending")

    def wait(self, work: Any) -> None:
        """A thread waits for a receive."""
        with self._on("thread"):
            work.wait()

    def take(self, buffer: Tensor) -> None:
        """The layers' stream uses the buffer."""
        assert buffer.numel()
        self.log.append("layers use the buffer")


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Wires:
    """The wires of the middle stage of three."""
    wires = Wires(1, 3)
    monkeypatch.setattr(module, "dist", wires.dist())
    monkeypatch.setattr(module, "CudaStreams", lambda _: wires)
    return wires


def make(step_id: int, num_tokens: int, dtype: torch.dtype) -> Tensor:
    """What a neighbour sends. [1 + tokens, hidden]"""
    packed = torch.full((1 + num_tokens, HIDDEN), float(step_id), dtype=dtype)
    packed[0, : 8 // packed.element_size()].view(torch.int64).fill_(step_id)
    return packed


def test_receives_do_not_queue_behind_the_layers(wires: Wires) -> None:
    transport = Transport(HIDDEN, torch.float32, CPU, 9.0)
    assert not transport.waits_for_neighbours
    transport.expect(1, 2)
    transport.expect(2, 2)
    wires.arriving = [make(1, 2, torch.float32)]
    hidden = transport.recv(1)
    transport.send(1, transport.pack(1, hidden + 1))
    assert wires.log == [
        "receive 1 on receiving",
        "receive 2 on receiving",
        "layers waits for 1",
        "layers use the buffer",
        "sending waits for layers",
        "send 1 on sending",
    ]


def test_a_thread_that_waits_takes_nothing_from_the_layers(wires: Wires) -> None:
    transport, waits = Transport(HIDDEN, torch.float32, CPU, 9.0), []
    transport.follow(lambda step_id, wait: waits.append((step_id, wait)))
    transport.expect(1, 2)
    ((step_id, wait),) = waits
    assert step_id == 1
    wires.arriving = [make(1, 2, torch.float32)] * 2  # the fake receives at each wait
    wait()
    transport.recv(1)
    # Without waiting themselves, the layers might begin before the receive.
    assert wires.log[1:3] == ["thread waits for 1", "layers waits for 1"]


def test_a_sent_tensor_is_kept_until_the_receiver_must_have_it(wires: Wires) -> None:
    transport = Transport(HIDDEN, torch.float32, CPU, 9.0)
    for step_id in range(4):
        transport.send(step_id, transport.pack(step_id, torch.zeros(1, HIDDEN)))
    assert wires.log.count("layers waits for sent 0") == 1
    assert "layers waits for sent 1" not in wires.log


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_step_is_passed_on_as_it_came_and_found_by_its_check(
    wires: Wires, dtype: torch.dtype
) -> None:
    transport = Transport(HIDDEN, dtype, CPU, 9.0)
    wires.arriving = [make(2**40 + step_id, 3, dtype) for step_id in (1, 6, 3)]
    for step_id in (1, 2, 3):
        transport.expect(2**40 + step_id, 3)
    checks = []
    for step_id in (1, 2, 3):
        hidden = transport.recv(2**40 + step_id)  # nothing is raised: nothing has waited
        checks.append(transport.check(2**40 + step_id))
        packed = transport.pack(2**40 + step_id, hidden)
        transport.send(2**40 + step_id, packed)
    headers = [sent[0, : 8 // sent.element_size()].view(torch.int64) for sent in wires.sent]
    assert [int(header) - 2**40 for header in headers] == [1, 6, 3]
    checks[0].verify()
    with pytest.raises(TransportError, match=f"stage 1 got step {2**40 + 6}, not step {2**40 + 2}"):
        checks[1].verify()
    checks[2].verify()


def test_a_step_out_of_the_order_of_plans_is_an_error_at_once(wires: Wires) -> None:
    transport = Transport(HIDDEN, torch.float32, CPU, 9.0)
    wires.arriving = [make(1, 1, torch.float32)]
    transport.expect(1, 1)
    with pytest.raises(TransportError, match="stage 1 got step 1, not step 2"):
        transport.recv(2)


def test_a_failure_of_the_own_device_is_not_the_neighbour_s(
    wires: Wires, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Transport(HIDDEN, torch.float32, CPU, 9.0)

    def fails(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    fake = wires.dist()
    fake.isend = fails
    monkeypatch.setattr(module, "dist", fake)
    with pytest.raises(torch.AcceleratorError):
        transport.send(1, transport.pack(1, torch.zeros(1, HIDDEN)))

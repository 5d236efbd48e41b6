"""One stage of a transport test: a process that plays a part beside its neighbours."""

import os
import random
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
import zmq
from torch import Tensor

from workers.comm.arrivals import Arrivals
from workers.comm.transport import Transport, TransportError, connect
from workers.slice_order import SliceOrder

HIDDEN = 8
NUM_STEPS = 40


def activations(step_id: int) -> Tensor:
    """What the first stage makes of a step: 1 to 7 tokens, all numbers its own. [tokens, hidden]"""
    count = 1 + step_id % 7
    return torch.full((count, HIDDEN), step_id) + torch.arange(count * HIDDEN).view(count, -1) / 64


def send(transport: Transport, step_id: int, hidden: Tensor) -> None:
    """As a stage does it."""
    transport.send(step_id, transport.pack(step_id, hidden))


def relay(transport: Transport, stage: int, num_stages: int) -> None:
    """Every stage adds one; the last finds what each step must have become. 3 steps in flight."""
    for begin in range(0, NUM_STEPS, 3):
        window = range(begin, min(begin + 3, NUM_STEPS))
        for step_id in window:
            transport.expect(step_id, 1 + step_id % 7)
        for step_id in window:
            hidden = activations(step_id) if stage == 0 else transport.recv(step_id) + 1
            if stage < num_stages - 1:
                send(transport, step_id, hidden)
            else:
                assert torch.equal(hidden, activations(step_id) + stage), step_id
    dist.barrier()  # no stage leaves with a send under way


def large_step_ids(transport: Transport, stage: int, _: int) -> None:
    """Ids beyond 31 bits, and a step of a thousand tokens, arrive as they are."""
    for step_id in (2**31 - 1, 2**31, 2**40 + 3):
        transport.expect(step_id, 1000)
        sent = torch.full((1000, HIDDEN), float(step_id % 1000))
        if stage == 0:
            send(transport, step_id, sent)
        else:
            assert torch.equal(transport.recv(step_id), sent)
    dist.barrier()


def another_step(transport: Transport, stage: int, _: int) -> None:
    """The neighbour sends a step under the same tag that is not the one in the plan."""
    if stage == 0:
        send(transport, 2**31 + 5, activations(0))
    else:
        transport.expect(5, 1)
        transport.recv(5)
    dist.barrier()


def plan_out_of_order(transport: Transport, stage: int, _: int) -> None:
    """What was expected first is not what the stage asks for."""
    if stage == 0:
        send(transport, 1, activations(0))
        send(transport, 2, activations(0))
    else:
        transport.expect(1, 1)
        transport.expect(2, 1)
        transport.recv(2)
    dist.barrier()


def death(transport: Transport, stage: int, _: int) -> None:
    """The neighbour dies with nothing sent."""
    if stage == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    transport.expect(1, 1)
    transport.recv(1)


def silence(transport: Transport, stage: int, _: int) -> None:
    """The neighbour lives and sends nothing."""
    if stage > 0:
        transport.expect(1, 1)
        transport.recv(1)


def single_stage(transport: Transport, stage: int, num_stages: int) -> None:
    """One stage has no links."""
    assert (stage, num_stages) == (0, 1)
    transport.expect(1, 1)


def rounds(transports: list[Transport], stage: int, num_stages: int) -> None:
    """Steps of random length go round, and each slice adds one; any wait in a circle would show."""
    arrivals, order = Arrivals(len(transports)), SliceOrder(len(transports))
    for i, transport in enumerate(transports):
        transport.follow(partial(arrivals.post, i))
    rng, last = random.Random(stage), len(transports) - 1
    context = zmq.Context()
    quiet = context.socket(zmq.PULL)  # no messages come
    for step_id in range(NUM_STEPS):
        for transport in transports:
            transport.expect(step_id, 1 + step_id % 7)
        if stage == 0:
            order.arrive(0, step_id)
    ran: list[tuple[int, int]] = []
    while len(ran) < NUM_STEPS * len(transports):
        for slice_index, step_id in arrivals.drain():
            order.arrive(slice_index, step_id)
        chosen = order.take()
        if chosen is None:
            assert arrivals.wait(quiet, 30.0), f"stage {stage} waits in vain after {ran[-3:]}"
            continue
        slice_index, step_id = chosen
        ran.append(chosen)
        transport = transports[slice_index]
        is_begin = stage == slice_index == 0
        hidden = activations(step_id) if is_begin else transport.recv(step_id) + 1
        time.sleep(rng.choice([0, 0, 0.001, 0.004]))
        if slice_index == last and stage == num_stages - 1:
            assert torch.equal(hidden, activations(step_id) + num_stages * len(transports) - 1)
        else:
            send(transport, step_id, hidden)
    for i in range(len(transports)):
        assert [step_id for slice_index, step_id in ran if slice_index == i] == list(
            range(NUM_STEPS)
        )
    dist.barrier()


def lost_on_the_way_back(transports: list[Transport], stage: int, num_stages: int) -> None:
    """The last stage dies before it has sent a step to the first one's second slice."""
    if stage == num_stages - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    arrivals = Arrivals(2)
    transports[1].follow(partial(arrivals.post, 1))
    transports[1].expect(1, 1)
    context = zmq.Context()
    assert arrivals.wait(context.socket(zmq.PULL), 30.0)
    for _ in arrivals.drain():
        raise AssertionError("nothing can have arrived")


PLAYS_OF_SLICES: dict[str, Callable[[list[Transport], int, int], None]] = {
    play.__name__: play for play in (rounds, lost_on_the_way_back)
}
PLAYS: dict[str, Callable[[Transport, int, int], None]] = {
    play.__name__: play
    for play in (
        relay,
        large_step_ids,
        another_step,
        plan_out_of_order,
        death,
        silence,
        single_stage,
    )
}


def main(
    stage: int, num_stages: int, store: str, play: str, test: Connection, num_slices: int = 1
) -> None:
    """Join the group and play the part; send "well", or the message of the `TransportError`."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=stage,
        world_size=num_stages,
        timeout=timedelta(seconds=60),
    )
    timeout_s = 2.0 if play == "silence" else 60.0
    widths = [HIDDEN] * num_slices
    transports = connect(widths, torch.float32, torch.device("cpu"), timeout_s)
    dist.barrier()  # a part that ends at once must not disturb a neighbour that still connects
    said = "well"
    try:
        if play in PLAYS_OF_SLICES:
            PLAYS_OF_SLICES[play](transports, stage, num_stages)
        else:
            PLAYS[play](transports[0], stage, num_stages)
    except TransportError as error:
        said = str(error)
    test.send(said)
    if play == "silence":
        test.poll(None)  # until the test has closed its end
    os._exit(0)  # the group is not taken down in order: a neighbour may be gone

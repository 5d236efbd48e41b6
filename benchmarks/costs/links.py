"""What it takes to hand activations from one process to another on one host: `make links`.

gloo as the transport uses it (a receive is posted before the tensor is sent), a Unix socket, and
shared memory with semaphores. A message of a given size goes one way and eight bytes come back.
Prints the time of a round trip and the CPU time of the sender, as medians of runs in turn.
"""

import argparse
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from multiprocessing.context import ForkContext
from typing import Any

import torch
import torch.distributed as dist

from bench.machine import describe_machine, describe_versions

# Activations of 16 decode rows of 128 bf16 values, of 128 rows, and of 2,048 rows of 768.
SIZES = (16 * 128 * 2, 128 * 128 * 2, 2048 * 768 * 2)
ANSWER = 8  # bytes
TIMEOUT = timedelta(seconds=30)
WARM_UP = 20  # round trips

RoundTrip = Callable[[], None]


@contextmanager
def gloo(rank: int, size: int, folder: str) -> Iterator[RoundTrip]:
    """torch.distributed over the loopback device."""
    address = f"file://{folder}/store"
    dist.init_process_group("gloo", address, rank=rank, world_size=2, timeout=TIMEOUT)
    message, answer = (torch.zeros(n, dtype=torch.uint8) for n in (size, ANSWER))

    def send() -> None:
        returned = dist.irecv(answer, 1)
        sent = dist.isend(message, 1)
        assert returned is not None
        assert sent is not None
        returned.wait()
        sent.wait()

    def receive() -> None:
        received = dist.irecv(message, 0)
        assert received is not None
        received.wait()
        dist.send(answer, 0)

    yield receive if rank else send
    dist.destroy_process_group()


@contextmanager
def unix_socket(rank: int, size: int, folder: str) -> Iterator[RoundTrip]:
    """A stream socket in the file system."""
    path = f"{folder}/socket"
    if rank:
        link = _connected(path)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            link, _ = listener.accept()
    message, answer = memoryview(bytearray(size)), memoryview(bytearray(ANSWER))

    def fill(buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            at += link.recv_into(buffer[at:])

    def send() -> None:
        link.sendall(message)
        fill(answer)

    def receive() -> None:
        fill(message)
        link.sendall(answer)

    with link:
        yield receive if rank else send


@contextmanager
def shared_memory(
    rank: int, size: int, folder: str, semaphores: Sequence[Any]
) -> Iterator[RoundTrip]:
    """A mapped file, and a semaphore for each direction."""
    shared = torch.from_file(f"{folder}/memory", shared=True, size=size, dtype=torch.uint8)
    own = torch.zeros(size, dtype=torch.uint8)

    def send() -> None:
        shared.copy_(own)
        semaphores[0].release()
        semaphores[1].acquire()

    def receive() -> None:
        semaphores[0].acquire()
        own.copy_(shared)
        semaphores[1].release()

    yield receive if rank else send


def measure(name: str, size: int, num_trips: int) -> tuple[float, float]:
    """The median microseconds of a round trip, and of the sender's CPU time per round trip."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    semaphores = [context.Semaphore(0), context.Semaphore(0)]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _started(context, _run, name, rank, size, folder, semaphores, num_trips, results)
            for rank in (0, 1)
        ]
        with closing(results):
            for process in processes:
                process.join(TIMEOUT.seconds)
                process.kill()
            if results.empty():
                raise RuntimeError(f"{name} made no {num_trips} round trips")
            took: tuple[float, float] = results.get()
    return took


def _started(context: ForkContext, run: Callable[..., None], *arguments: Any) -> Any:
    process = context.Process(target=run, args=arguments, daemon=True)
    process.start()
    return process


def _run(
    name: str,
    rank: int,
    size: int,
    folder: str,
    semaphores: Sequence[Any],
    num_trips: int,
    results: Any,
) -> None:
    torch.set_num_threads(1)
    if name == "gloo":
        link = gloo(rank, size, folder)
    elif name == "Unix socket":
        link = unix_socket(rank, size, folder)
    else:
        link = shared_memory(rank, size, folder, semaphores)
    with link as trip:
        for _ in range(WARM_UP):
            trip()
        times, cpu_began_at = [], time.process_time()
        for _ in range(num_trips):
            began_at = time.perf_counter()
            trip()
            times.append(1e6 * (time.perf_counter() - began_at))
        cpu_us = 1e6 * (time.process_time() - cpu_began_at) / num_trips
    if rank == 0:
        results.put((statistics.median(times), cpu_us))


def _connected(path: str) -> socket.socket:
    """A socket that is connected once the other process listens."""
    until = time.monotonic() + TIMEOUT.seconds
    while True:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(path)
            return link
        except OSError:
            link.close()
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def main(argv: Sequence[str]) -> int:
    """Print the table as Markdown. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make links ARGS=...", description=__doc__)
    parser.add_argument("--trips", type=int, default=500, help="round trips of a run [500]")
    parser.add_argument("--runs", type=int, default=3, help="runs of each link, in turn [3]")
    options = parser.parse_args(argv)
    machine, versions = describe_machine(), describe_versions()
    print(
        f"{machine['cpu']}, {machine['num_cores']} cores, torch {versions['torch']}, load", end=" "
    )
    print(f"{machine['load_average_1min']}\n")
    names = ("gloo", "Unix socket", "shared memory")
    print("| bytes |" + "".join(f" {name} us | sender's CPU us |" for name in names))
    print("|---|" + "---|---|" * len(names))
    for size in SIZES:
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(options.runs):
            for name in names:
                runs[name].append(measure(name, size, options.trips))
        cells = [
            f"{statistics.median(column):,.0f}"
            for name in names
            for column in zip(*runs[name], strict=True)
        ]
        print(f"| {size:,} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

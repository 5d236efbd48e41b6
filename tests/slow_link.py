"""A network link with latency and bandwidth of its own: `python -m tests.slow_link`.

The kernels of many test machines lack netem, so packets are delayed by a process between two TAP
devices, which may be moved into network namespaces. The process reads lines "MILLISECONDS
GBIT_PER_S" (0: as fast as it can) from its standard input, which hold from then on, and ends when
that is closed.
"""

import argparse
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_LARGEST_PACKET = 1 << 16
# Packets that wait; more are dropped, as a router does and as netem does by default.
_MOST_PACKETS = 1000


class Direction:
    """Packets from one device to the other one."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self._sink = source, sink
        self._packets: deque[tuple[float, bytes]] = deque()
        self._free_at = 0.0

    @property
    def next_at(self) -> float | None:
        """When the next packet arrives, by the monotonic clock."""
        return self._packets[0][0] if self._packets else None

    def read(self, delay_s: float, bytes_per_s: float) -> None:
        """Take what the source has; later packets never overtake."""
        with suppress(BlockingIOError):
            while True:
                packet = os.read(self.source, _LARGEST_PACKET)
                if len(self._packets) == _MOST_PACKETS:
                    continue
                now = time.monotonic()
                self._free_at = max(now, self._free_at)
                if bytes_per_s:
                    self._free_at += len(packet) / bytes_per_s
                last_at = self._packets[-1][0] if self._packets else now
                self._packets.append((max(self._free_at + delay_s, last_at), packet))

    def write(self) -> None:
        """Hand over what has arrived; a device that is down or full loses it."""
        now = time.monotonic()
        while self._packets and self._packets[0][0] <= now:
            with suppress(OSError):
                os.write(self._sink, self._packets.popleft()[1])


def main() -> None:
    """Open both devices, say so with a line, and hand packets over."""
    parser = argparse.ArgumentParser(prog="python -m tests.slow_link", description=__doc__)
    parser.add_argument("names", nargs=2, help="names of the devices")
    first, second = (open_device(name) for name in parser.parse_args().names)
    print("open", flush=True)  # noqa: T201
    hand_over([Direction(first, second), Direction(second, first)])


def open_device(name: str) -> int:
    """A new TAP device, which exists as long as the descriptor is open."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


def hand_over(directions: list[Direction]) -> None:
    """Until standard input is closed."""
    delay_s = bytes_per_s = 0.0
    while True:
        times = [direction.next_at for direction in directions]
        waits = [max(0.0, at - time.monotonic()) for at in times if at is not None]
        sources = [direction.source for direction in directions]
        readable, _, _ = select.select([*sources, sys.stdin], [], [], min(waits) if waits else None)
        if sys.stdin in readable:
            if not (line := sys.stdin.readline()):
                return
            milliseconds, gbit_per_s = map(float, line.split())
            delay_s, bytes_per_s = milliseconds / 1000, gbit_per_s * 1e9 / 8
        for direction in directions:
            if direction.source in readable:
                direction.read(delay_s, bytes_per_s)
            direction.write()


if __name__ == "__main__":
    main()

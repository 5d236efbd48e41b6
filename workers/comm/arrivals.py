"""Arrivals: which of several posted receives are done.

gloo and NCCL can only be waited for, so each link has a thread that waits for its receives, one
after the other. It wakes the stage through a socket, which can be polled beside the engine's.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue

import zmq

Wait = Callable[[], None]


class Arrivals:
    """The steps that have arrived on each of `num_links` links."""

    def __init__(self, num_links: int) -> None:
        self._posted = [SimpleQueue[tuple[int, Wait]]() for _ in range(num_links)]
        self._has_thread = [False] * num_links
        self._done = SimpleQueue[tuple[int, int] | Exception]()
        self._wakes, self._woken = socket.socketpair()
        self._wakes.setblocking(False)
        self._woken.setblocking(False)

    def post(self, link: int, step_id: int, wait: Wait | None) -> None:
        """`wait` returns when the step has arrived; without it, it has."""
        if wait is None:
            self._done.put((link, step_id))
            return
        if not self._has_thread[link]:
            self._has_thread[link] = True
            threading.Thread(target=self._follow, args=(link,), daemon=True).start()
        self._posted[link].put((step_id, wait))

    def drain(self) -> Iterator[tuple[int, int]]:
        """Yield (link, step id) of all new arrivals; raises what a link's `wait` has raised."""
        with suppress(BlockingIOError):
            self._woken.recv(4096)
        with suppress(Empty):
            while True:
                done = self._done.get_nowait()
                if isinstance(done, Exception):
                    raise done
                yield done

    def wait(self, messages: "zmq.Socket[bytes]", timeout_s: float) -> bool:
        """Wait for an arrival or a message, for at most `timeout_s`; returns whether one came."""
        poller = zmq.Poller()
        poller.register(messages, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        return not self._done.empty() or bool(poller.poll(int(timeout_s * 1000)))

    def close(self) -> None:
        """Close the sockets; threads that wait end with the process."""
        self._wakes.close()
        self._woken.close()

    def _follow(self, link: int) -> None:
        """Wait for what is posted on a link, until one of them fails."""
        while True:
            step_id, wait = self._posted[link].get()
            done: tuple[int, int] | Exception = (link, step_id)
            try:
                wait()
            except Exception as error:  # raised in the stage's thread, which ends the stage
                done = error
            self._done.put(done)
            with suppress(OSError):  # it has been woken often enough, or is closed
                self._wakes.send(b"\0")
            if isinstance(done, Exception):
                return

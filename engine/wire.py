"""The doors' sockets: typed ZeroMQ, one hub that binds and many spokes that connect.

Endpoints are `ipc://PATH` on one host and `tcp://HOST:PORT` across hosts. A spoke names itself;
when a process comes back under the same name, it takes the name over from the dead one.
Nothing is queued for a peer that is not there: `Hub.send` says so instead. Messages that are sent
together travel as one: to wake the other end costs more than to pack a message.
"""

import os
from collections.abc import Iterator
from typing import Any, Generic, Self, TypeVar

import msgspec
import zmq

Received = TypeVar("Received")

# More than one message per live sequence and step; a peer this far behind is as good as gone.
HIGH_WATER_MARK = 100_000
_POLLIN = int(zmq.POLLIN)


class Hub(Generic[Received]):
    """The binding end: receives `Received` messages from named peers, sends to them by name.

    Raises `zmq.ZMQError` when a tcp port is taken or the endpoint makes no sense. An ipc path is
    taken over from whoever had it; the supervisor sees to it that a folder has one daemon.
    """

    def __init__(self, endpoint: str, receives: Any) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        _set_up(self.socket)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError:
            self.close()
            raise
        if endpoint.startswith("ipc://"):
            os.chmod(endpoint.removeprefix("ipc://"), 0o700)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[list[Received]] = _decoder(receives)

    @property
    def endpoint(self) -> str:
        """The address as bound; for `tcp://HOST:*` it holds the port that was found free."""
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, peer: str, *messages: msgspec.Struct) -> bool:
        """Send to one peer; False when it is not connected or hopelessly behind."""
        return self.send_encoded(peer, self._encoder.encode(messages))

    def send_encoded(self, peer: str, payload: bytes) -> bool:
        """Send what `encode` made: a plan for S stages is packed once."""
        try:
            self.socket.send_multipart((peer.encode(), payload), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    def encode(self, *messages: msgspec.Struct) -> bytes:
        """The bytes of messages on the wire."""
        return self._encoder.encode(messages)

    def drain(self) -> Iterator[tuple[str, Received]]:
        """All that has arrived, without waiting. Raises `msgspec.DecodeError` on a foreign one."""
        while _has_arrived(self.socket):
            peer, payload = self.socket.recv_multipart(zmq.NOBLOCK)
            name = peer.decode()
            for message in self._decoder.decode(payload):
                yield name, message

    def close(self) -> None:
        """Close at once; what was not yet sent is dropped."""
        self.socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Spoke(Generic[Received]):
    """The connecting end with a name of its own. May connect before the hub is there."""

    def __init__(self, endpoint: str, name: str, receives: Any) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        _set_up(self.socket)
        self.socket.setsockopt(zmq.IDENTITY, name.encode())
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError:
            self.close(0)
            raise
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[list[Received]] = _decoder(receives)

    def send(self, *messages: msgspec.Struct) -> bool:
        """Send to the hub; False when the queue to it is full."""
        try:
            self.socket.send(self._encoder.encode(messages), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Whether something has arrived within the time."""
        return bool(self.socket.poll(int(timeout_s * 1000)))

    def drain(self) -> Iterator[Received]:
        """All that has arrived, without waiting."""
        while _has_arrived(self.socket):
            yield from self._decoder.decode(self.socket.recv(zmq.NOBLOCK))

    def close(self, linger_s: float = 0.2) -> None:
        """Close after trying to send what is queued for `linger_s`."""
        self.socket.close(linger=int(linger_s * 1000))
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _has_arrived(socket: "zmq.Socket[bytes]") -> bool:
    """Whether a message is there: a receive that fails costs 15 us for its exception alone."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & _POLLIN)


def _decoder(receives: Any) -> Any:
    return msgspec.msgpack.Decoder(list[receives])


def _set_up(socket: "zmq.Socket[bytes]") -> None:
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.LINGER, 0)
    # Across hosts a cut link is otherwise noticed only after the kernel's two hours.
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)

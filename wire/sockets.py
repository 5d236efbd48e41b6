"""The doors' sockets: typed ZeroMQ, one hub that binds and many spokes that connect.

Endpoints are `ipc://PATH` on one host and `tcp://HOST:PORT` across hosts. A spoke names itself;
when a process comes back under the same name, it takes the name over from the dead one.
Nothing is queued for a peer that is not there: `Hub.send` says so instead. A spoke's messages wait
for its hub, if they are worth it. Messages that are sent together travel as one: to wake the other
end costs more than to pack a message.

An ipc socket is its user's alone. On tcp, who shares a secret is let in and nobody else (CurveZMQ,
<https://rfc.zeromq.org/spec/26/>): both ends make their keys of it, and what passes is encrypted.
What a stranger sends all the same is dropped and counted; nothing that is received can run code.
"""

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Generic, Self, TypeVar

import msgspec
import zmq
from zmq.utils import z85

Received = TypeVar("Received")

# More than one message per live sequence and step; a peer this far behind is as good as gone.
HIGH_WATER_MARK = 100_000
# The longest prompt's tokens with 20 log-probabilities each are some tens of MB.
MAX_MESSAGE_BYTES = 1 << 30
# How the names begin that ZeroMQ makes up for peers without one.
_UNNAMED = b"\0"
_POLLIN = int(zmq.POLLIN)
# What a guess of the secret costs who has overheard a handshake (scrypt, RFC 7914): 16 MiB, 0.08 s.
_GUESS_COST = {"n": 1 << 14, "r": 8, "p": 1}
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Hub(Generic[Received]):
    """The binding end: receives `Received` messages from named peers, sends to them by name.

    Raises `zmq.ZMQError` when a tcp port is taken or the endpoint makes no sense. An ipc path is
    taken over from whoever had it; the supervisor sees to it that a folder has one daemon.
    `num_dropped` counts what was dropped: handshakes of those who do not know the `secret`, and
    messages that are not ours.
    """

    def __init__(self, endpoint: str, receives: Any, secret: str | None = None) -> None:
        self.num_dropped = 0
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self._monitor: zmq.Socket[bytes] | None = None
        _set_up(self.socket)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if secret and _needs_keys(endpoint):
            self.socket.setsockopt(zmq.CURVE_SERVER, 1)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, _keys("hub", secret)[1])
            self._monitor = self.socket.get_monitor_socket(_HANDSHAKE_FAILED)
        try:
            _bind(self.socket, endpoint)
        except (zmq.ZMQError, OSError):
            self.close()
            raise
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
        """All that has arrived, without waiting, but for what is dropped."""
        while _has_arrived(self.socket):
            yield from self._read(self.socket.recv_multipart(zmq.NOBLOCK))
        # Here, because libzmq stops to write down for whom it does not read.
        while self._monitor is not None and _has_arrived(self._monitor):
            self._monitor.recv_multipart(zmq.NOBLOCK)
            self.num_dropped += 1

    def _read(self, frames: list[bytes]) -> list[tuple[str, Received]]:
        try:
            peer, payload = frames
            if not peer.startswith(_UNNAMED):
                name = peer.decode()
                return [(name, message) for message in self._decoder.decode(payload)]
        except (ValueError, RecursionError):  # msgspec's errors and those of Unicode are the former
            pass
        self.num_dropped += 1
        return []

    def close(self) -> None:
        """Close at once; what was not yet sent is dropped."""
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close(linger=0)
        self.socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Spoke(Generic[Received]):
    """The connecting end with a name of its own. May connect before the hub is there.

    What is sent before waits for it, unless it is meant for one who is there (`queues_ahead`). On
    tcp it must know the hub's `secret`, if that has one.
    """

    def __init__(
        self,
        endpoint: str,
        name: str,
        receives: Any,
        secret: str | None = None,
        *,
        queues_ahead: bool = True,
    ) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        _set_up(self.socket)
        self.socket.setsockopt(zmq.IMMEDIATE, not queues_ahead)
        self.socket.setsockopt(zmq.IDENTITY, name.encode())
        if secret and _needs_keys(endpoint):
            public, own = _keys("spoke", secret)
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, _keys("hub", secret)[0])
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, own)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError:
            self.close(0)
            raise
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[list[Received]] = _decoder(receives)

    def send(self, *messages: msgspec.Struct) -> bool:
        """Send to the hub; False when the queue to it is full, or there may be none."""
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


def _needs_keys(endpoint: str) -> bool:
    """A socket file has its rights, and its folder's; there is nobody to keep out."""
    return endpoint.startswith("tcp://")


@lru_cache(maxsize=4)
def _keys(end: str, secret: str) -> tuple[bytes, bytes]:
    """(public, secret) of one end. The hub's public key is as secret as the secret itself.

    That is why no list of spokes' keys is needed: without the hub's, which never travels, nobody
    can say the handshake's first word.
    """
    salt = f"tdpipe {end}".encode()
    own = z85.encode(hashlib.scrypt(secret.encode(), salt=salt, dklen=32, **_GUESS_COST))
    return zmq.curve_public(own), own


def _bind(socket: "zmq.Socket[bytes]", endpoint: str) -> None:
    """Listen; a socket file is its user's alone from the first moment."""
    mask = os.umask(0o077)
    try:
        socket.bind(endpoint)
    finally:
        os.umask(mask)


def _set_up(socket: "zmq.Socket[bytes]") -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.LINGER, 0)
    # Across hosts a cut link is otherwise noticed only after the kernel's two hours.
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)

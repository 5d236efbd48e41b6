"""Typed ZeroMQ sockets: one hub binds, and any number of spokes connect.

Endpoints are `ipc://PATH` on one host and `tcp://HOST:PORT` across hosts. A spoke has a name; a new
process with the same name replaces the dead one. The hub queues nothing for a peer that is not
connected: `Hub.send` returns False. Messages of a spoke are queued until it is connected, if
`queues_ahead` is set. Messages that are sent together are one ZeroMQ message: waking the receiver
costs more than encoding.

An ipc socket is accessible only to its user. On tcp, only peers with the same secret are accepted
(CurveZMQ, <https://rfc.zeromq.org/spec/26/>): both ends derive their keys from it, and all traffic
is encrypted. Invalid messages are dropped and counted; no received data is executed.
"""

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from socket import AF_INET6, SOCK_STREAM, getaddrinfo, gethostbyname
from typing import Any, Generic, Self, TypeVar

import msgspec
import zmq
from zmq.utils import z85

Received = TypeVar("Received")

# Messages queued per peer, more than one per live sequence and step: a slower peer has hung.
HIGH_WATER_MARK = 100_000
# The tokens of the longest prompts with 20 log-probabilities each take some tens of MB.
MAX_MESSAGE_BYTES = 1 << 30
# ZeroMQ's own heartbeats between hosts, which its thread answers while the process computes. TCP
# has no substitute: its keepalive rests while data is unacknowledged, and its retransmissions come
# up to 120 s apart. After a cut of 30 s between two network namespaces, a node heard the engine
# 24.1 s after the repair, and with these three 0.5 s after it.
# A connection that is closed loses what is on its way, and nobody may notice a lost step. So the
# timeout is longer than any silence that stages survive: after 10 s without the engine they end
# (`ENGINE_SILENCE_S` in workers/comm/node_link.py), also if it is only stopped and continued. It
# leaves time for a message of 100 MB over 100 Mbit/s, too, behind which a heartbeat has to wait.
HEARTBEAT_INTERVAL_MS, HEARTBEAT_TIMEOUT_MS = 2_000, 12_000
# An attempt to connect is given up and repeated: the pauses of TCP within one double, up to 64 s.
CONNECT_TIMEOUT_MS = 3_000
# First byte of the names that ZeroMQ generates for peers without one.
_UNNAMED = b"\0"
_POLLIN = int(zmq.POLLIN)
# Cost of one guess of the secret after recording a handshake (scrypt, RFC 7914): 16 MiB, 0.08 s.
_GUESS_COST = {"n": 1 << 14, "r": 8, "p": 1}
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Hub(Generic[Received]):
    """The binding end: receives `Received` messages from named peers, sends to them by name.

    `receives` is the union of message types; peers with another `secret` are refused on tcp.
    Raises `zmq.ZMQError` if a tcp port is in use or the endpoint is invalid. An existing ipc path
    is taken over; the supervisor ensures that a runtime folder has only one daemon. `num_dropped`
    counts failed handshakes (another secret) and malformed messages.
    """

    def __init__(self, endpoint: str, receives: Any, secret: str | None = None) -> None:
        self.num_dropped = 0
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self._monitor: zmq.Socket[bytes] | None = None
        _set_up(self.socket, endpoint)
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
        """The bound address, with the actual port for `tcp://HOST:*`."""
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, peer: str, *messages: msgspec.Struct) -> bool:
        """Send to a peer; returns False if it is not connected or its queue is full."""
        return self.send_encoded(peer, self._encoder.encode(messages))

    def send_encoded(self, peer: str, payload: bytes) -> bool:
        """Send the result of `encode`, so that a step for S stages is encoded once."""
        try:
            self.socket.send_multipart((peer.encode(), payload), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    def encode(self, *messages: msgspec.Struct) -> bytes:
        """Encode messages for `send_encoded`."""
        return self._encoder.encode(messages)

    def drain(self) -> Iterator[tuple[str, Received]]:
        """Yield all messages that have arrived, with their senders, without waiting."""
        while _has_arrived(self.socket):
            yield from self._read(self.socket.recv_multipart(zmq.NOBLOCK))
        # The monitor must be read regularly: libzmq stops writing events when its queue is full.
        while self._monitor is not None and _has_arrived(self._monitor):
            self._monitor.recv_multipart(zmq.NOBLOCK)
            self.num_dropped += 1

    def _read(self, frames: list[bytes]) -> list[tuple[str, Received]]:
        try:
            peer, payload = frames
            if not peer.startswith(_UNNAMED):
                name = peer.decode()
                return [(name, message) for message in self._decoder.decode(payload)]
        except (ValueError, RecursionError):  # the errors of msgspec and Unicode are ValueErrors
            pass
        self.num_dropped += 1
        return []

    def close(self) -> None:
        """Close immediately; messages not sent yet are dropped."""
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
    """The connecting end, which has a name; it may be created before the hub exists.

    With `queues_ahead`, messages are queued until the hub is connected; otherwise `send` returns
    False. On tcp, it needs the `secret` of the hub, if the hub has one. Raises `zmq.ZMQError` if
    the endpoint is invalid.
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
        _set_up(self.socket, endpoint)
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
        """Send to the hub; returns False if the message can neither be sent nor queued."""
        try:
            self.socket.send(self._encoder.encode(messages), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for a message; returns whether one has arrived."""
        return bool(self.socket.poll(int(timeout_s * 1000)))

    def drain(self) -> Iterator[Received]:
        """Yield all messages that have arrived, without waiting."""
        while _has_arrived(self.socket):
            yield from self._decoder.decode(self.socket.recv(zmq.NOBLOCK))

    def close(self, linger_s: float = 0.2) -> None:
        """Close, after trying for `linger_s` to send queued messages."""
        self.socket.close(linger=int(linger_s * 1000))
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _has_arrived(socket: "zmq.Socket[bytes]") -> bool:
    """Whether a message has arrived; cheaper than a failed receive (15 us for its exception)."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & _POLLIN)


def _decoder(receives: Any) -> Any:
    return msgspec.msgpack.Decoder(list[receives])


def _needs_keys(endpoint: str) -> bool:
    """Whether keys are needed: access to an ipc socket is limited by file permissions."""
    return endpoint.startswith("tcp://")


@lru_cache(maxsize=4)
def _keys(end: str, secret: str) -> tuple[bytes, bytes]:
    """Derive the (public, secret) keys of one end from the secret.

    The public key of the hub is never sent, and is as confidential as the secret: no handshake can
    begin without it. Therefore the hub needs no list of spoke keys.
    """
    salt = f"tdpipe {end}".encode()
    own = z85.encode(hashlib.scrypt(secret.encode(), salt=salt, dklen=32, **_GUESS_COST))
    return zmq.curve_public(own), own


def _bind(socket: "zmq.Socket[bytes]", endpoint: str) -> None:
    """Bind the socket; a socket file is created accessible only to its user."""
    mask = os.umask(0o077)
    try:
        socket.bind(_numeric(endpoint))
    finally:
        os.umask(mask)


def _numeric(endpoint: str) -> str:
    """The endpoint with the address of its host: ZeroMQ binds to addresses, not to names."""
    host, port = _host_and_port(endpoint)
    if not endpoint.startswith("tcp://") or host.startswith("[") or host == "*":
        return endpoint
    if not _needs_ipv6(endpoint):
        return f"tcp://{gethostbyname(host)}:{port}"
    address = getaddrinfo(host, None, AF_INET6, SOCK_STREAM)[0][4][0]
    return f"tcp://[{address}]:{port}"


def _needs_ipv6(endpoint: str) -> bool:
    """Whether the host is an IPv6 address, or a name without an IPv4 address (yet).

    A socket for IPv6 connects to such a name by either kind of address.
    """
    host, _ = _host_and_port(endpoint)
    if not endpoint.startswith("tcp://") or host == "*":
        return False
    try:
        gethostbyname(host)
    except OSError:
        return True
    return False


def _host_and_port(endpoint: str) -> tuple[str, str]:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host, port


def _set_up(socket: "zmq.Socket[bytes]", endpoint: str) -> None:
    socket.setsockopt(zmq.IPV6, _needs_ipv6(endpoint))
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.LINGER, 0)
    if endpoint.startswith("tcp://"):
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_INTERVAL_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)

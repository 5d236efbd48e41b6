"""Prefix keys: by them, a router finds the instance that has the beginning of a prompt cached.

A router has no tokenizer. A key is therefore a chained hash of a prompt's first bytes: of the first
`KEY_BYTES`, of the first 2 x `KEY_BYTES`, and so on, without an incomplete rest. Prompts that begin
alike have the same first keys. Router and daemon compute them from the same JSON body.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

KEY_BYTES = 512
MAX_KEYS = 256
"""Keys of a prompt at most: 128 KiB."""
_PROMPTS = ("prompt", "instructions", "messages", "input")

_encode = msgspec.json.Encoder().encode


def prompt_bytes(body: Mapping[str, Any]) -> bytes:
    """The prompt of a request in one canonical form; empty if there is none.

    Messages are encoded one after the other, so that a longer conversation begins with the bytes of
    a shorter one.
    """
    return b"".join(part for name in _PROMPTS for part in _parts(body.get(name)))


def prefix_keys(body: Mapping[str, Any], prompt: bytes) -> tuple[int, ...]:
    """The keys of `prompt`, the `prompt_bytes` of the body; only equal salts have equal keys."""
    salt = str(body.get("cache_salt") or "").encode()
    tools = _encode(body["tools"]) if body.get("tools") else b""
    first = blake2b(salt + b"\0" + tools, digest_size=8).digest()
    return chained_keys(prompt[: MAX_KEYS * KEY_BYTES], KEY_BYTES, first)


def chained_keys(data: bytes, size: int, key: bytes = b"") -> tuple[int, ...]:
    """A key for each whole `size` bytes, hashed with the key before; the first with `key`."""
    keys = []
    for begin in range(0, len(data) - size + 1, size):
        key = blake2b(key + data[begin : begin + size], digest_size=8).digest()
        keys.append(int.from_bytes(key, "little", signed=True))
    return tuple(keys)


def _parts(value: object) -> Iterator[bytes]:
    if isinstance(value, str):
        yield value.encode()
    elif isinstance(value, list):
        for item in value:
            yield _encode(item) + b"\n"

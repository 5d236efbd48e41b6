"""The prefix digest: the beginnings of prompts that are probably in the engine's prefix cache.

A router sends a prompt to the daemon whose digest has most of its prefix keys
(`wire.prefix_keys`). The digest estimates the cache: it holds the keys of the prompts that were
prefilled last, as many as the KV cache has room for, and forgets them when the stages were lost.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from wire.messages import EngineReady
from wire.prefix_keys import KEY_BYTES, prefix_keys, prompt_bytes

# Weight of the newest prompt in the mean number of tokens per byte.
_NEWEST = 0.02
# Keys at most, whatever the size of the KV cache. Together they take some 10 MB.
MAX_DIGEST_KEYS = 65_536

_decode = msgspec.json.Decoder().decode


class HashedPrompt(NamedTuple):
    """The prefix keys of a request, and the bytes of its prompt."""

    keys: tuple[int, ...]
    num_bytes: int


class DigestChanges:
    """What has changed since the last `take`, for one follower of the digest."""

    def __init__(self, keys: dict[int, None]) -> None:
        self._added, self._dropped = dict(keys), dict[int, None]()

    def add(self, key: int) -> None:
        """Note a key that the digest has got."""
        if key in self._dropped:
            del self._dropped[key]
        else:
            self._added[key] = None

    def drop(self, key: int) -> None:
        """Note a key that the digest has lost."""
        if key in self._added:
            del self._added[key]
        else:
            self._dropped[key] = None

    def take(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The keys that were added and those that were dropped; the first call returns all."""
        added, dropped = tuple(self._added), tuple(self._dropped)
        self._added.clear()
        self._dropped.clear()
        return added, dropped


class PrefixDigest:
    """Keys in the order of their last use, tails of prompts first.

    A daemon that no router has followed yet spends no time on it. Without a prefix cache it is not
    `is_enabled`, and stays empty.
    """

    def __init__(self, *, is_enabled: bool = True) -> None:
        self._is_enabled = is_enabled
        self._has_followers = False
        self._keys: dict[int, None] = {}
        self._followers: list[DigestChanges] = []
        self._num_kv_tokens = 0
        self._tokens_per_byte = 0.0

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    def hash_prompt(self, body: bytes) -> HashedPrompt | None:
        """The keys of the prompt in a valid JSON body; None if it is too short or nobody asks."""
        if not self._has_followers or not self._is_enabled or len(body) < KEY_BYTES:
            return None
        values = _decode(body)
        prompt = prompt_bytes(values)
        keys = prefix_keys(values, prompt)
        return HashedPrompt(keys, len(prompt)) if keys else None

    def add(self, prompt: HashedPrompt, num_tokens: int) -> None:
        """Add a prompt that was prefilled and has `num_tokens` tokens."""
        ratio = num_tokens / prompt.num_bytes
        mean = self._tokens_per_byte
        self._tokens_per_byte = mean + _NEWEST * (ratio - mean) if mean else ratio
        # The head of a prompt is the last to be evicted, because its tail is useless without it.
        for key in reversed(prompt.keys):
            if key in self._keys:
                del self._keys[key]
            else:
                self._tell(DigestChanges.add, key)
            self._keys[key] = None
        self._evict()

    def begin(self, ready: EngineReady) -> None:
        """Forget everything: the stages are new, and have an empty KV cache of this size."""
        self._num_kv_tokens = ready.num_blocks * ready.block_size
        for key in self._keys:
            self._tell(DigestChanges.drop, key)
        self._keys.clear()

    @contextmanager
    def follow(self) -> Iterator[DigestChanges]:
        """What the digest has, and from then on its changes."""
        self._has_followers = True
        changes = DigestChanges(self._keys)
        self._followers.append(changes)
        try:
            yield changes
        finally:
            self._followers.remove(changes)

    def _evict(self) -> None:
        """Drop the keys for which the KV cache has no room."""
        tokens_per_key = self._tokens_per_byte * KEY_BYTES
        capacity = min(MAX_DIGEST_KEYS, int(self._num_kv_tokens / tokens_per_key))
        while len(self._keys) > capacity:
            key = next(iter(self._keys))
            del self._keys[key]
            self._tell(DigestChanges.drop, key)

    def _tell(self, change: Callable[[DigestChanges, int], None], key: int) -> None:
        for follower in self._followers:
            change(follower, key)

"""The prefix cache: sequences that begin with the same tokens share the KV of their full blocks.

The key of a full block is a chained hash (SHA-256) of all that its KV depends on: the key of the
block before it, its own tokens, and at the root the `cache_salt` of the request and the RoPE
length, if the frequencies of the model depend on it. Blocks with the same key therefore have the
same KV, as far as rounding goes.

Where batch invariance is promised, rounding counts too. The KV of a token is the same wherever its
prompt is cut, but not if it was fed alone, as in a decode step. Blocks with generated tokens then
have keys that only their own sequence has, and a prompt never feeds a single token after a hit.

The last token of a prompt is always computed: its logits are what the prompt was fed for. So is a
prompt whose tokens are still to be scored.

Sequences that wait offline are ordered so that those with a common prefix are neighbours, which
keeps the prefix in the cache until the last of them: a depth-first walk of the tree of prefixes,
whose branches are in order of arrival.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

from engine.state.blocks import BlockLedger
from engine.state.rope_lengths import rope_length
from engine.state.sequence import PrefixOrder, Sequence
from wire.messages import RopeRule

# Seconds after which no further sequence is put beside the first one of its prefix.
MAX_GROUP_S = 60.0


@dataclass(slots=True)
class _OpenKey:
    """A key in prompts of open sequences: the first of them, by number, and when it arrived."""

    number: int
    began_at: float
    num_sequences: int = 0


class PrefixCache:
    """Finds and registers the full blocks of sequences in the ledger; does nothing if disabled."""

    def __init__(
        self,
        ledger: BlockLedger,
        *,
        is_enabled: bool = True,
        is_invariant: bool = False,
        rope: RopeRule | None = None,
    ) -> None:
        self.is_enabled = is_enabled
        self._ledger = ledger
        self._is_invariant = is_invariant
        self._rope = rope
        self._open: dict[bytes, _OpenKey] = {}
        self._num_joined = 0

    def join(self, sequence: Sequence) -> None:
        """Expect the blocks of a new or lost sequence in other open sequences, and in the cache."""
        sequence.prefix_keys.clear()
        if not self.is_enabled:
            return
        sequence.prefix_root = self._root(sequence)
        keys = self._keys(sequence, len(sequence.token_ids) // self._ledger.block_size)
        sequence.num_joined = len(keys)
        number = len(self._ledger.find(keys))
        while number < len(keys) and keys[number] in self._open:
            number += 1
        sequence.expected_hit = self._ledger.block_size * min(number, self._most(sequence))
        sequence.prefix_order = self._enter(keys, sequence.arrived_at)

    def leave(self, sequence: Sequence) -> None:
        """Undo `join`, unless that was in the cache of stages that are lost."""
        if not self.is_enabled:
            return
        for key in sequence.prefix_keys[: sequence.num_joined]:
            self._open[key].num_sequences -= 1
            if not self._open[key].num_sequences:
                del self._open[key]
        sequence.num_joined = 0

    def _enter(self, keys: list[bytes], now: float) -> PrefixOrder:
        """Count an open sequence for its keys, and return its place among others."""
        number = root = newest = self._num_joined
        self._num_joined += 1
        began_at, branches = now, []
        for depth, key in enumerate(keys):
            entry = self._open.get(key)
            if entry is None:
                entry = self._open[key] = _OpenKey(number, now)
            elif now - entry.began_at > MAX_GROUP_S:
                entry.number, entry.began_at = number, now
            entry.num_sequences += 1
            if not depth:
                began_at, root = entry.began_at, entry.number
                newest = root
            elif entry.number != newest:
                newest = entry.number
                branches += [-depth, newest]
        return began_at, (root, *branches)

    def find(self, sequence: Sequence) -> "array[int]":
        """The cached blocks with which a waiting sequence would begin if it were admitted now."""
        if not self.is_enabled:
            return array("i")
        return self._ledger.find(islice(sequence.prefix_keys, self._most(sequence)))

    def shares(self, sequences: Iterable[Sequence]) -> Iterator[int]:
        """How many blocks each would share with live sequences and with those before it.

        The others are taken from the free blocks, also those that are cached.
        """
        admitted: set[bytes] = set()
        for sequence in sequences:
            most = self._most(sequence) if self.is_enabled else 0
            keys = sequence.prefix_keys
            number = self._ledger.num_held(self._ledger.find(islice(keys, most)))
            while number < most and keys[number] in admitted:
                number += 1
            admitted.update(keys)
            yield number

    def register(self, sequence: Sequence, num_tokens: int) -> None:
        """Give keys to the full blocks of the sequence's first tokens, which steps compute.

        Those of a prompt have them when it is fed; those of an answer when the sequence is no
        longer live, because nobody else asks for them before.
        """
        number = num_tokens // self._ledger.block_size
        if number <= sequence.num_registered or not self.is_enabled:
            return
        keys = self._keys(sequence, number)
        for i in range(sequence.num_registered, number):
            self._ledger.register(sequence.block_table[i], keys[i])
        sequence.num_registered = number

    def is_computed_by(self, other: Sequence, sequence: Sequence) -> bool:
        """Whether a half-fed prompt is about to compute the next block that a waiting one needs."""
        if not self.is_enabled:
            return False
        number, most = len(self.find(sequence)), min(self._most(sequence), other.num_joined)
        return number < most and sequence.prefix_keys[number] == other.prefix_keys[number]

    def _most(self, sequence: Sequence) -> int:
        """The most blocks with which the sequence may begin."""
        asks_scores = sequence.submit.sampling.num_prompt_logprobs >= 0
        if asks_scores and sequence.num_scored < sequence.num_prompt_tokens:
            return 0
        least_fed = 2 if self._is_invariant else 1
        return max(0, len(sequence.token_ids) - least_fed) // self._ledger.block_size

    def _keys(self, sequence: Sequence, number: int) -> list[bytes]:
        """The keys of the sequence's blocks, at least `number` of them."""
        keys, size = sequence.prefix_keys, self._ledger.block_size
        if len(keys) >= number:
            return keys
        begin = len(keys)
        tokens = sequence.token_ids[begin * size : number * size].tobytes()
        bytes_per_block = size * sequence.token_ids.itemsize
        own = sequence.num_prompt_tokens // size if self._is_invariant else number
        key = keys[-1] if keys else sequence.prefix_root
        for i in range(begin, number):
            if i == own:
                key += sequence.sequence_id.to_bytes(8, "little")
            at = (i - begin) * bytes_per_block
            key = sha256(key + tokens[at : at + bytes_per_block]).digest()
            keys.append(key)
        return keys

    def _root(self, sequence: Sequence) -> bytes:
        length = rope_length(sequence, self._rope) if self._rope else 0
        return sha256(f"{length} {sequence.submit.cache_salt}".encode()).digest()

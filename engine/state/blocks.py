"""The block ledger: which KV blocks are free, held or cached, and how many a sequence needs.

The blocks that a sequence holds are in `Sequence.block_table` (`engine.state.sequence`).
Block numbers are the same on all stages: block 7 is block 7 in the cache of every stage.

A block can be in several tables (prefix cache): the ledger counts its holders. A block with a key
(`engine.state.prefix_cache`) that nobody holds any more keeps its contents, and counts as free. It
is taken when no other block is free: the least recently used one first, and the tail of a sequence
before its head, because a tail is of no use without its head.

A block can be reassigned while a step that still writes to it is in flight: every stage runs steps
in the order received, so the new owner writes later, and overwrites every position that it reads.
For the same reason a block has its key as soon as the step that fills it is packed: the steps that
read it come later, and within one step all keys and values are written before any row attends.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable


class BlockLedger:
    """Allocates `num_blocks` blocks of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Blocks are taken from the end: low numbers first, and freed blocks while still in cache.
        self._free = array("i", range(num_blocks - 1, -1, -1))
        self._keys: dict[int, bytes] = {}
        self._by_key: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # with a key, in no table
        self._num_sharers: dict[int, int] = {}  # of blocks in several tables: tables but one

    @property
    def num_free(self) -> int:
        """The number of blocks that are in no block table, cached ones included."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        """The number of blocks in the block tables of sequences; a shared one counts once."""
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """The number of blocks with a key, held or not."""
        return len(self._keys)

    def blocks_for(self, num_tokens: int) -> int:
        """The number of blocks for `num_tokens` tokens; the last one may be partly filled."""
        return -(-num_tokens // self.block_size)

    def missing(self, block_table: "array[int]", num_tokens: int) -> int:
        """The number of blocks to add so that the table holds `num_tokens` tokens."""
        return max(0, self.blocks_for(num_tokens) - len(block_table))

    def extend(self, block_table: "array[int]", num_tokens: int) -> bool:
        """Grow the table to hold `num_tokens` tokens.

        If too few blocks are free, nothing changes and False is returned.
        """
        if num_tokens <= len(block_table) * self.block_size:
            return True
        count = self.missing(block_table, num_tokens)
        if count > self.num_free:
            return False
        from_free = min(count, len(self._free))
        taken = self._free[len(self._free) - from_free :]
        del self._free[len(self._free) - from_free :]
        taken.reverse()
        block_table.extend(taken)
        if count > from_free:
            self._evict(count - from_free, block_table)
        return True

    def free(self, block_table: "array[int]") -> None:
        """Take the table's blocks from it; those that no other table holds are free."""
        block_table.reverse()
        if not self._keys:
            self._free.extend(block_table)
        else:
            keys, idle, free, sharers = self._keys, self._idle, self._free, self._num_sharers
            for block in block_table:
                if block in sharers:
                    self._unshare(block)
                elif block in keys:
                    idle[block] = None
                else:
                    free.append(block)
        del block_table[:]

    # --- the prefix cache -------------------------------------------------------------------

    def register(self, block: int, key: bytes) -> None:
        """Give a held block the key of its contents, unless another block has them already."""
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def find(self, keys: Iterable[bytes]) -> "array[int]":
        """The blocks with these keys, up to the first key that no block has."""
        blocks, get = array("i"), self._by_key.get
        for key in keys:
            block = get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_held(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are in a table; the others count as free."""
        return sum([block not in self._idle for block in blocks])

    def hold(self, block_table: "array[int]", blocks: Iterable[int]) -> None:
        """Add blocks with keys to the table."""
        for block in blocks:
            if block in self._idle:
                del self._idle[block]
            else:
                self._num_sharers[block] = self._num_sharers.get(block, 0) + 1
            block_table.append(block)

    def _unshare(self, block: int) -> None:
        if self._num_sharers[block] == 1:
            del self._num_sharers[block]
        else:
            self._num_sharers[block] -= 1

    def _evict(self, count: int, block_table: "array[int]") -> None:
        """Move the least recently used blocks that are in no table to one; they lose their keys."""
        pop, keys, by_key = self._idle.popitem, self._keys, self._by_key
        for _ in range(count):
            block, _ = pop(last=False)
            del by_key[keys.pop(block)]
            block_table.append(block)

"""The block ledger: which KV blocks are free, and how many a sequence needs.

The blocks that a sequence holds are in `Sequence.block_table` (`engine.state.sequence`).
Block numbers are the same on all stages: block 7 is block 7 in the cache of every stage.

A block can be reassigned while a step that still writes to it is in flight: every stage runs steps
in the order received, so the new owner writes later, and overwrites every position that it reads.
"""

from array import array


class BlockLedger:
    """Allocates `num_blocks` blocks of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Blocks are taken from the end: low numbers first, and freed blocks while still in cache.
        self._free = array("i", range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """The number of blocks that are in no block table."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """The number of blocks in the block tables of sequences."""
        return self.num_blocks - len(self._free)

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
        if count > len(self._free):
            return False
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        block_table.extend(taken)
        return True

    def free(self, block_table: "array[int]") -> None:
        """Free all blocks of the table and empty it."""
        block_table.reverse()
        self._free.extend(block_table)
        del block_table[:]

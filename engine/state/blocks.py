"""The block ledger: which KV blocks are free, and how many a sequence needs.

Blocks are numbered once for all stages: block 7 of a sequence is block 7 in every stage's cache.

A block may be handed on while a step that still writes to it is in flight: every stage runs steps
in the order received, so the new owner's writes come later and cover all that it will ever read.
"""

from array import array


class BlockLedger:
    """Hands out `num_blocks` blocks of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Popped from the end: low numbers first, and a freed block is reused while it is warm.
        self._free = array("i", range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks in somebody's table."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def missing(self, block_table: "array[int]", num_tokens: int) -> int:
        """Blocks that the table lacks to hold `num_tokens` tokens."""
        return max(0, self.blocks_for(num_tokens) - len(block_table))

    def extend(self, block_table: "array[int]", num_tokens: int) -> bool:
        """Grow the table to hold `num_tokens`; False, and no change, when too few are free."""
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
        """Take all blocks of the table back and empty it."""
        block_table.reverse()
        self._free.extend(block_table)
        del block_table[:]

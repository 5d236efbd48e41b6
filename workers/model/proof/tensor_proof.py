"""The proof of a tensor-parallel plan: two ranks must answer as the whole skeleton does.

The ranks run in threads of this process. A plan that forgets a sum, or a model whose code counts
on all heads, gives other logits, and is refused instead of serving wrong answers.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

import torch
from torch import Tensor

from workers.model.tensor_parallel import TensorGroup

# Skeletons have two KV heads.
NUM_RANKS = 2
# Limit of a wait for the other rank, which computes a few layers of a skeleton.
WAIT_S = 60.0


class ThreadGroup:
    """A tensor group whose ranks are threads."""

    def __init__(self, rank: int, barrier: Barrier, slots: list[Tensor]) -> None:
        self._rank, self._barrier, self._slots = rank, barrier, slots

    @property
    def rank(self) -> int:
        """The number of this rank."""
        return self._rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self._slots)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all ranks."""
        return torch.stack(self.all_gather(tensor)).sum(0)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks."""
        self._slots[self._rank] = tensor
        self._barrier.wait(WAIT_S)
        found = list(self._slots)
        self._barrier.wait(WAIT_S)
        return found


def run_ranks(prove: Callable[[TensorGroup], None]) -> None:
    """Run `prove` as each rank; raises what the first rank that fails raises."""
    barrier = Barrier(NUM_RANKS)
    slots = [torch.empty(0)] * NUM_RANKS

    def run(rank: int) -> None:
        try:
            prove(ThreadGroup(rank, barrier, slots))
        except BaseException:
            barrier.abort()  # releases the others
            raise

    with ThreadPoolExecutor(NUM_RANKS) as pool:
        done = [pool.submit(run, rank) for rank in range(NUM_RANKS)]
    errors = [error for error in (future.exception() for future in done) if error is not None]
    for error in sorted(errors, key=lambda each: isinstance(each, BrokenBarrierError)):
        raise error

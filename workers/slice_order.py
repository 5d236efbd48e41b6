"""The slice order: which step a stage with virtual stages runs next, and on which slice of it.

A stage with v virtual stages holds v slices of the layers, and each step comes round v times. The
stage runs the oldest step whose activations have arrived: a later slice of an older step goes
before an earlier slice of a newer one. With steps of equal length, this is Megatron's interleaved
order (arXiv 2104.04473, section 2.2): S steps pass a slice, then the same S steps the next one. No
stage waits for a step that waits for this stage, because none waits for a certain one.

There is one wait, which is short: while S steps are on their way, the first stage begins another
only if none of the S comes round within `PATIENCE`. They are due after a hop, and a step that
begins just before breaks the groups of S: two stages with two slices took 5.1 instead of 4.5 times
a step for four equal steps.

On each slice, steps run in order: each one arrives after the one before, because it does so on the
first slice of the first stage, and links keep the order. So a row finds the KV of all its earlier
tokens.
"""

from collections import deque

# The longest wait for a step that comes round, as a part of the time of the last slice.
PATIENCE = 0.1


class SliceOrder:
    """The steps that have arrived at the slices of one stage and have not been run there.

    A step is on its way from its first slice to its last. Beyond `window` of them another is early.
    """

    def __init__(self, num_slices: int, window: int | None = None) -> None:
        self._window, self._num_begun, self._num_ended = window, 0, 0
        self._arrived = [deque[int]() for _ in range(num_slices)]

    def __len__(self) -> int:
        """How often steps have arrived and have not been run."""
        return sum(map(len, self._arrived))

    def arrive(self, slice_index: int, step_id: int) -> None:
        """The step can be run on this slice, and all older steps have arrived there before."""
        self._arrived[slice_index].append(step_id)

    @property
    def is_early(self) -> bool:
        """Whether only a step has arrived that would be one too many on its way."""
        on_way = self._num_begun - self._num_ended
        return self._window is not None and on_way >= self._window and self._next() == 0

    def take(self) -> tuple[int, int] | None:
        """Remove and return (slice, step id) of what runs next; None if nothing has arrived."""
        slice_index = self._next()
        if slice_index is None:
            return None
        self._num_begun += slice_index == 0
        self._num_ended += slice_index == len(self._arrived) - 1
        return slice_index, self._arrived[slice_index].popleft()

    def _next(self) -> int | None:
        """The slice of the oldest step that has arrived."""
        waiting = [(steps[0], i) for i, steps in enumerate(self._arrived) if steps]
        return min(waiting)[1] if waiting else None

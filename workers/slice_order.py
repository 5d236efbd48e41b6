"""The slice order: which step a stage with virtual stages runs next, and on which slice of it.

A stage with v virtual stages holds v slices of the layers, and each step comes round v times. The
stage runs the oldest step whose activations have arrived: a later slice of an older step goes
before an earlier slice of a newer one. With S steps of equal length in flight, this is Megatron's
interleaved order (arXiv 2104.04473, section 2.2): S steps pass a slice, then the same S steps the
next one. Nothing that has arrived waits for something that has not, so a stage never idles while
it could run, and no stage waits for a step that waits for this stage.

On each slice, steps run in order: each one arrives after the one before, because it does so on the
first slice of the first stage, and links keep the order. So a row finds the KV of all its earlier
tokens.
"""

from collections import deque


class SliceOrder:
    """The steps that have arrived at the slices of one stage and have not been run there."""

    def __init__(self, num_slices: int) -> None:
        self._arrived = [deque[int]() for _ in range(num_slices)]

    def __len__(self) -> int:
        """How often steps have arrived and have not been run."""
        return sum(map(len, self._arrived))

    def arrive(self, slice_index: int, step_id: int) -> None:
        """The step can be run on this slice, and all older steps have arrived there before."""
        self._arrived[slice_index].append(step_id)

    def take(self) -> tuple[int, int] | None:
        """Remove and return (slice, step id) of what runs next; None if nothing has arrived."""
        waiting = [(steps[0], i) for i, steps in enumerate(self._arrived) if steps]
        if not waiting:
            return None
        _, slice_index = min(waiting)
        return slice_index, self._arrived[slice_index].popleft()

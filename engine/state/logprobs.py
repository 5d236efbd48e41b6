"""Log-probabilities on their way through the engine, which only counts their rows."""

import numpy as np

from wire.messages import Logprobs


def of_those_left(logprobs: Logprobs, is_left: list[bool]) -> Logprobs | None:
    """Without the rows that are no longer of interest; the others' indices close the gaps."""
    left = np.array(is_left)
    indices, num_tops = _ints(logprobs.indices), _ints(logprobs.num_tops)
    kept = left[indices]
    if not kept.any():
        return None
    kept_tops = np.repeat(kept, num_tops)
    places = np.cumsum(left) - 1
    return Logprobs(
        indices=places[indices[kept]].astype(np.int32).tobytes(),
        chosen=np.frombuffer(logprobs.chosen, np.float32)[kept].tobytes(),
        ranks=_ints(logprobs.ranks)[kept].tobytes(),
        num_tops=num_tops[kept].tobytes(),
        top_ids=_ints(logprobs.top_ids)[kept_tops].tobytes(),
        tops=np.frombuffer(logprobs.tops, np.float32)[kept_tops].tobytes(),
    )


def _ints(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, np.int32)

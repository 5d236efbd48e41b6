"""Token ids of a submission that the model does not have: an embedding or a mask has no such row.

The server refuses them in the client's words. This check is the second line of defence: an index
error in a stage would cost all requests a restart.
"""

from collections.abc import Iterator

import numpy as np

from wire.messages import Submit


def find_unknown(submit: Submit, vocab_size: int) -> int | None:
    """The first token id of the submission that is negative or not below `vocab_size`, or None."""
    for packed in _packed_ids(submit):
        ids = np.frombuffer(packed, np.int32)
        if len(ids) and (ids.min() < 0 or ids.max() >= vocab_size):
            return int(ids[(ids < 0) | (ids >= vocab_size)][0])
    return next((id_ for id_ in submit.stop_token_ids if not 0 <= id_ < vocab_size), None)


def _packed_ids(submit: Submit) -> Iterator[bytes]:
    sampling = submit.sampling
    yield submit.prompt_token_ids
    yield submit.output_token_ids
    yield sampling.bias_ids
    yield sampling.allowed_token_ids
    yield sampling.logprob_token_ids
    yield from sampling.bad_words

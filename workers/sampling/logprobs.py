"""Log-probabilities of tokens under the unedited model, packed for the wire."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from wire.messages import Logprobs, Step
from workers.device.upload import to_device

# Positions that are converted to fp32 at once: 256 positions x 150,000 tokens are 150 MB.
_AT_ONCE = 256


def logprobs_of(
    logits: Tensor,
    token_ids: Tensor,
    num_tops: np.ndarray,
    indices: np.ndarray,
    named: Mapping[int, np.ndarray] | None = None,
) -> Logprobs:
    """Compute the log-probabilities of the tokens at some positions, and of the likeliest ones.

    `logits` [positions, vocabulary] in fp32 as the model returned them, `token_ids` [positions];
    `num_tops` and `indices` [positions] as in `Logprobs`. The positions in `named` have these
    `num_tops` tokens instead of the likeliest ones, also the most likely first.
    """
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(-1, token_ids[:, None])
    ranks = (logprobs > chosen).sum(dim=-1) + 1
    most = min(int(num_tops.max(initial=0)), logits.shape[-1])
    tops, top_ids = logprobs.topk(most, dim=-1)
    num_tops = np.minimum(num_tops, most).astype(np.int32)
    for position, named_ids in (named or {}).items():
        own_ids = to_device(named_ids.astype(np.int64), logits.device)
        own, order = logprobs[position, own_ids].sort(descending=True, stable=True)
        tops[position, : len(own)], top_ids[position, : len(own)] = own, own_ids[order]
    # Positions that need fewer than the maximum keep only their first ones.
    wanted = np.arange(most) < num_tops[:, None]
    return Logprobs(
        indices=indices.astype(np.int32).tobytes(),
        chosen=chosen[:, 0].cpu().numpy().astype(np.float32).tobytes(),
        ranks=ranks.cpu().numpy().astype(np.int32).tobytes(),
        num_tops=num_tops.tobytes(),
        top_ids=top_ids.cpu().numpy()[wanted].astype(np.int32).tobytes(),
        tops=tops.cpu().numpy()[wanted].astype(np.float32).tobytes(),
    )


def scores_of(logits: Tensor, step: Step) -> tuple[Logprobs, ...]:
    """Compute the log-probabilities of the tokens of the step's scored rows, row by row.

    `logits` [scored tokens, vocabulary] are of the position before each token, see
    `StepBatch.score_at`.
    """
    counts = np.frombuffer(step.num_tokens, np.int32)
    starts = np.frombuffer(step.start_positions, np.int32)
    ends = np.cumsum(counts)
    all_ids = np.frombuffer(step.token_ids, np.int32)
    scores, at = [], 0
    for row in step.scored:
        end = int(ends[row.row])
        token_ids = all_ids[end - counts[row.row] + 1 : end]
        if row.next_token_id >= 0:
            token_ids = np.append(token_ids, np.int32(row.next_token_id))
        first = int(starts[row.row]) + 1
        own = logits[at : at + len(token_ids)]
        scores.append(_score(own, token_ids, row.num_logprobs, first))
        at += len(token_ids)
    return tuple(scores)


def _score(logits: Tensor, token_ids: np.ndarray, num_tops: int, first: int) -> Logprobs:
    """Score the tokens [positions] of a prompt from position `first`, in parts."""
    ids = to_device(token_ids.astype(np.int64), logits.device)
    parts = [
        logprobs_of(
            logits[at : at + _AT_ONCE].float(),
            ids[at : at + _AT_ONCE],
            np.full(min(_AT_ONCE, len(ids) - at), num_tops),
            np.arange(first + at, first + min(at + _AT_ONCE, len(ids))),
        )
        for at in range(0, len(ids), _AT_ONCE)
    ]
    names = Logprobs.__struct_fields__
    return Logprobs(*(b"".join(getattr(part, name) for part in parts) for name in names))

"""Log-probabilities: what the model itself thinks of tokens, packed for the door."""

import numpy as np
import torch
from torch import Tensor

from engine.messages import Logprobs


def told_of(
    logits: Tensor, token_ids: Tensor, num_tops: np.ndarray, indices: np.ndarray
) -> Logprobs:
    """Of the tokens that came at some positions, and of the likeliest ones there.

    `logits` [positions, vocabulary] in fp32 as the model gave them, `token_ids` [positions];
    `num_tops` and `indices` [positions] as in `Logprobs`.
    """
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(-1, token_ids[:, None])
    ranks = (logprobs > chosen).sum(dim=-1) + 1
    most = min(int(num_tops.max(initial=0)), logits.shape[-1])
    tops, top_ids = logprobs.topk(most, dim=-1)
    num_tops = np.minimum(num_tops, most).astype(np.int32)
    # Positions that asked for fewer than the most keep the first of theirs.
    wanted = np.arange(most) < num_tops[:, None]
    return Logprobs(
        indices=indices.astype(np.int32).tobytes(),
        chosen=chosen[:, 0].cpu().numpy().astype(np.float32).tobytes(),
        ranks=ranks.cpu().numpy().astype(np.int32).tobytes(),
        num_tops=num_tops.tobytes(),
        top_ids=top_ids.cpu().numpy()[wanted].astype(np.int32).tobytes(),
        tops=tops.cpu().numpy()[wanted].astype(np.float32).tobytes(),
    )


def score(logits: Tensor, token_ids: np.ndarray, num_tops: int, first_position: int) -> Logprobs:
    """Of a prompt's tokens `token_ids` [positions] from `first_position` on.

    `logits` [positions, vocabulary] are those before each.
    """
    count = len(token_ids)
    ids = torch.from_numpy(token_ids.astype(np.int64)).to(logits.device)
    positions = np.arange(first_position, first_position + count)
    return told_of(logits.float(), ids, np.full(count, num_tops), positions)

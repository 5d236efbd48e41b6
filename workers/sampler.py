"""The sampler: from the last stage's logits to token ids.

The draw for output token `i` of a sequence is a hash of (seed, i), so it needs no generator whose
state would have to survive a pre-emption or a restart, and knows nothing of the batch. One uniform
number per row picks the token by inverting the distribution's cumulated sum.
"""

import numpy as np
import torch
from torch import Tensor

from engine.messages import Step


@torch.inference_mode()
def sample(logits: Tensor, step: Step) -> bytes:
    """Token ids, packed int32, one per sampling row; `logits` is `[sampling rows, vocabulary]`."""
    for row, banned in step.bans:
        logits[row, torch.from_numpy(np.frombuffer(banned, np.int32).astype(np.int64))] = -torch.inf
    token_ids = logits.argmax(dim=-1)
    if step.random_rows:
        rows = torch.from_numpy(np.frombuffer(step.random_rows, np.int32).astype(np.int64))
        rows = rows.to(logits.device)
        token_ids[rows] = _draw(logits[rows].float(), step)
    packed: bytes = token_ids.to("cpu", torch.int32).numpy().tobytes()
    return packed


def uniforms(seeds: np.ndarray, output_indices: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each (seed, index), by two rounds of splitmix64 (Steele 2014).

    seeds uint64, output_indices any integer type; answers float64 of the same length.
    """
    state = _mix(seeds) ^ output_indices.astype(np.uint64)
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _draw(logits: Tensor, step: Step) -> Tensor:
    """One token per row from its tempered, filtered distribution. [rows]"""
    device = logits.device
    temperatures = _column(step.temperatures, np.float32, device)
    top_ps = _column(step.top_ps, np.float32, device)
    top_ks = _column(step.top_ks, np.int32, device)
    draws = uniforms(
        np.frombuffer(step.seeds, np.uint64), np.frombuffer(step.output_indices, np.int32)
    )
    # Below this, dividing would overflow; it is greedy by then in any case.
    tempered = (logits - logits.amax(-1, keepdim=True)) / temperatures.clamp(min=1e-6)
    ordered, order = tempered.sort(dim=-1, descending=True, stable=True)
    cumulated = ordered.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    vocabulary = logits.shape[-1]
    # What stays is a prefix of the order: until top_p is reached, and no more than top_k tokens.
    within_p = (cumulated < top_ps).sum(dim=-1, keepdim=True) + 1
    within_k = torch.where(top_ks > 0, top_ks, vocabulary)
    kept = torch.minimum(within_p, within_k).clamp(max=vocabulary)
    mass = cumulated.gather(-1, kept - 1)
    target = torch.from_numpy(draws).to(device)[:, None] * mass
    picked = torch.minimum(torch.searchsorted(cumulated, target, right=True), kept - 1)
    return order.gather(-1, picked)[:, 0]


def _column(packed: bytes, dtype: type, device: torch.device) -> Tensor:
    return torch.from_numpy(np.frombuffer(packed, dtype).copy()).to(device)[:, None]

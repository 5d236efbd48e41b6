"""The model: any transformers encoder, pooled to one vector per prompt, and an ordinal head.

The head computes P(class > k) for every k but the last. These never increase with k, so the
probability of a class, which is a difference of two, is never negative (TD-Pipe, section 3.3, after
mu-Serve).
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from predictor.classes import Floats

Pooling = Literal["first", "mean"]

# A prompt with more than this many characters per token of the limit is cut before it is tokenized:
# tokenizing a whole book to get its last 512 tokens would take longer than the encoder.
_CHARACTERS_PER_TOKEN = 16


class OrdinalHead(nn.Module):
    """MLP from a vector to the logits of P(class > k), k = 0..K-2, which never increase with k."""

    def __init__(self, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, num_classes - 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """[prompts, hidden] -> [prompts, K - 1]."""
        raw = self.out(torch.tanh(self.dense(pooled)))
        decreases = nn.functional.softplus(raw[:, 1:])
        return torch.cat([raw[:, :1], raw[:, :1] - decreases.cumsum(dim=1)], dim=1)


class LengthModel(nn.Module):
    """Encoder and head."""

    def __init__(self, encoder: nn.Module, hidden_size: int, num_classes: int, pooling: Pooling):
        super().__init__()
        self.encoder = encoder
        self.head = OrdinalHead(hidden_size, num_classes)
        self.pooling = pooling

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask, both [prompts, tokens] -> logits of P(class > k)."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.head(_pool(hidden.float(), mask, self.pooling))  # type: ignore[no-any-return]


class Reader:
    """Tokenizes prompts, keeps the last `max_tokens` of each, and makes batches of them."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        tokenizer.truncation_side = "left"
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._pad = tokenizer.pad_token_id or 0

    @property
    def pooling(self) -> Pooling:
        """The vector of the first token if the tokenizer adds a CLS token, otherwise the mean."""
        ids = self.ids(["a"])[0]
        return "first" if ids[0] == self._tokenizer.cls_token_id else "mean"

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids of each prompt: at least one, so that the mean is defined."""
        limit = self._max_tokens * _CHARACTERS_PER_TOKEN
        read = self._tokenizer(
            [prompt[-limit:] for prompt in prompts],
            truncation=True,
            max_length=self._max_tokens,
            return_attention_mask=False,
            verbose=False,
        )
        return [ids or [self._pad] for ids in read["input_ids"]]

    def batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(ids, mask), both [rows, longest], padded on the right."""
        width = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return ids, mask


def probabilities(logits: Tensor) -> Floats:
    """[prompts, K - 1] logits of P(class > k) -> [prompts, K] of P(class = k)."""
    above = torch.sigmoid(logits.double())
    ones, zeros = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
    classes = torch.cat([ones, above], dim=1) - torch.cat([above, zeros], dim=1)
    # The last bit of a vectorised sigmoid is not monotone: a difference of -4e-28 has occurred.
    return classes.clamp(min=0).cpu().numpy().astype(np.float64)


def longest_input(encoder: nn.Module, wanted: int) -> int:
    """`wanted` tokens, or as many as the encoder has positions for."""
    limit: int | None = getattr(encoder.config, "max_position_embeddings", None)
    if limit is None:
        return wanted
    for name, module in encoder.named_modules():
        # RoBERTa's first position is the padding token's id + 1.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limit -= 0 if module.padding_idx is None else module.padding_idx + 1
    return max(1, min(wanted, limit))


def _pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """[prompts, tokens, hidden] -> [prompts, hidden]."""
    if pooling == "first":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

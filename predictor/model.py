"""The model: any transformers encoder, pooled to one vector per prompt, and an ordinal head.

The head gives P(class > k) for every k but the last, each no larger than the one before, so the
classes' probabilities are differences and never negative (TD-Pipe section 3.3, after mu-Serve).
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from predictor.classes import Floats

Pooling = Literal["first", "mean"]

# A prompt longer than this many characters for each token is cut before it is tokenised: tokenising
# a book for its last 512 tokens would cost more than the encoder.
_CHARACTERS_PER_TOKEN = 16


class OrdinalHead(nn.Module):
    """MLP from a vector to the logits of P(class > k), k = 0..K-2, which never rise with k."""

    def __init__(self, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, num_classes - 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """[prompts, hidden] -> [prompts, K - 1]."""
        raw = self.out(torch.tanh(self.dense(pooled)))
        falls = nn.functional.softplus(raw[:, 1:])
        return torch.cat([raw[:, :1], raw[:, :1] - falls.cumsum(dim=1)], dim=1)


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
    """Turns prompts into the last `max_tokens` of their tokens, and those into batches."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        tokenizer.truncation_side = "left"
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._pad = tokenizer.pad_token_id or 0

    @property
    def pooling(self) -> Pooling:
        """The first token's vector where the tokenizer sets a token there for it, else the mean."""
        ids = self.ids(["a"])[0]
        return "first" if ids[0] == self._tokenizer.cls_token_id else "mean"

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Each prompt's tokens; at least one for any prompt, so that there is a mean."""
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
        """(ids, mask), both [rows, longest]; padded on the right: positions count from the left."""
        width = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return ids, mask


def probabilities(logits: Tensor) -> Floats:
    """[prompts, K - 1] logits of P(class > k) -> [prompts, K] of P(class = k)."""
    above = torch.sigmoid(logits.double())
    ones, zeros = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
    classes = torch.cat([ones, above], dim=1) - torch.cat([above, zeros], dim=1)
    # A vectorised sigmoid is not monotone in its last bit: a difference of -4e-28 was seen.
    return classes.clamp(min=0).cpu().numpy().astype(np.float64)


def longest_input(encoder: nn.Module, wanted: int) -> int:
    """`wanted` tokens, or as many as the encoder has positions for."""
    limit: int | None = getattr(encoder.config, "max_position_embeddings", None)
    if limit is None:
        return wanted
    for name, module in encoder.named_modules():
        # RoBERTa counts positions from behind the padding token's id.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limit -= 0 if module.padding_idx is None else module.padding_idx + 1
    return max(1, min(wanted, limit))


def _pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """[prompts, tokens, hidden] -> [prompts, hidden]."""
    if pooling == "first":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

"""Rotary embeddings whose frequencies depend on the length of the sequence, for each token.

transformers takes that length from the largest position of a forward call. This is right where a
call is one sequence, as in `generate`: the tokens of a prompt of n tokens get the frequencies of
length n, and each later token, at position p, those of length p + 1; cached keys keep theirs. Here
a call is a micro-batch of several sequences, or a chunk of a prompt. Therefore each token comes
with its RoPE length max(n, p + 1), and the rotary modules compute frequencies for each token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from wire.messages import RopeRule
from workers.model.attention.interface import UnsupportedModelError

# Their `prepare_inputs_for_generation` drops the cache when a sequence outgrows the original
# length, so that all its tokens get the long factors.
_RECOMPUTING = {"phi3", "phi4_multimodal", "phimoe"}


class Frequencies(Protocol):
    """Inverse frequencies; up to a RoPE length of `limit` they do not depend on it."""

    limit: int

    def __call__(self, rope_lens: Tensor) -> Tensor:
        """The frequencies `[tokens, rotated / 2]` for RoPE lengths `[tokens]`."""
        ...


class TokenRope:
    """The rotary modules of a model that depend on lengths; it replaces their forward functions.

    Raises `UnsupportedModelError` for a module whose frequencies are not those of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._rope_lens: Tensor | None = None
        self._is_used = False
        self._limits: list[int] = []  # the RoPE lengths up to which frequencies are constant
        for module in model.modules():
            if isinstance(getattr(module, "rope_type", None), str | dict):
                self._replace(module)
        self._recompute_len = 0
        if self._is_used and model.config.model_type in _RECOMPUTING:
            self._recompute_len = int(getattr(model.config, "original_max_position_embeddings", 0))

    @property
    def rule(self) -> RopeRule | None:
        """What the engine must know; None if no frequencies depend on lengths."""
        return RopeRule(self._recompute_len, min(self._limits)) if self._is_used else None

    @contextmanager
    def lengths(self, rope_lens: Tensor | None) -> Iterator[None]:
        """Use these RoPE lengths `[1, tokens]` in this context; None: each position + 1."""
        self._rope_lens = rope_lens
        try:
            yield
        finally:
            self._rope_lens = None

    def _replace(self, module: Any) -> None:
        types = module.rope_type if isinstance(module.rope_type, dict) else {None: module.rope_type}
        if type(module).__name__ == "PhimoeRotaryEmbedding" and module.rope_type != "default":
            scale = PhimoeScale(module)
            self._limits.append(scale.limit)
            module.forward = partial(self._forward_phimoe, scale)
            self._is_used = True
            return
        by_layer_type = {
            layer_type: _frequencies(module, layer_type, rope_type)
            for layer_type, rope_type in types.items()
            if rope_type in ("longrope", "dynamic")
        }
        if not by_layer_type:
            return
        self._is_used = True
        self._limits += [frequencies.limit for frequencies in by_layer_type.values()]
        # For other types, transformers' forward uses `inv_freq` as it finds it.
        constant = {key: "default" if key in by_layer_type else types[key] for key in types}
        module.rope_type = constant if isinstance(module.rope_type, dict) else "default"
        module.forward = partial(self._forward, module, module.forward, by_layer_type)

    def _forward(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        by_layer_type: dict[str | None, Frequencies],
        x: Tensor,
        position_ids: Tensor,
        layer_type: str | None = None,
    ) -> Any:
        """The module's forward, mapped over the tokens with the frequencies of each."""
        named = {} if layer_type is None else {"layer_type": layer_type}
        if layer_type not in by_layer_type:
            return forward(x, position_ids, **named)
        name = _name(layer_type, "inv_freq")
        constant = getattr(module, name)

        def rotate(inv_freq: Tensor, positions: Tensor) -> Any:
            setattr(module, name, inv_freq)
            return forward(x, positions[..., None], **named)

        inv_freqs = by_layer_type[layer_type](self._lens_of(position_ids))
        try:
            found = torch.vmap(rotate, in_dims=(0, -1), out_dims=1)(inv_freqs, position_ids)
        finally:
            setattr(module, name, constant)
        if isinstance(found, Tensor):  # complex numbers
            return found.flatten(1, 2)
        return tuple(each.flatten(1, 2) for each in found)  # cos and sin: [1, tokens, rotated]

    def _forward_phimoe(
        self, scale: "PhimoeScale", x: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        return scale(x, position_ids, self._lens_of(position_ids))

    def _lens_of(self, position_ids: Tensor) -> Tensor:
        """The RoPE length of each token, `[tokens]`."""
        if self._rope_lens is not None:
            return self._rope_lens[0]
        return position_ids.flatten(0, -2)[0] + 1


class LongRope:
    """LongRoPE: one set of frequencies up to the original length, another one beyond it."""

    def __init__(self, module: Any, layer_type: str | None) -> None:
        self._short = getattr(module, _name(layer_type, "original_inv_freq"))
        self.limit = int(_parameters(module, layer_type)["original_max_position_embeddings"])
        device = self._short.device
        self._long, _ = _computed(module, layer_type, "longrope", self.limit + 1, device)

    def __call__(self, rope_lens: Tensor) -> Tensor:
        """See `Frequencies`."""
        return torch.where(rope_lens[:, None] > self.limit, self._long, self._short)


class DynamicNtk:
    """Dynamic NTK scaling: beyond the original length, the base grows with the length."""

    def __init__(self, module: Any, layer_type: str | None) -> None:
        self._original = getattr(module, _name(layer_type, "original_inv_freq"))
        parameters = _parameters(module, layer_type)
        self._base, self._factor = parameters["rope_theta"], parameters["factor"]
        self.limit = int(module.config.max_position_embeddings)
        device, even = self._original.device, 2 * len(self._original)
        length = torch.tensor(4 * self.limit, device=device)
        wanted, _ = _computed(module, layer_type, "dynamic", length, device)
        for dim in (even, even - 1):  # an odd one is the rounded part of a head
            self._set_dim(dim)
            if torch.allclose(self(length[None])[0], wanted, rtol=1e-5, atol=0):
                return
        raise UnsupportedModelError(
            f"{module.config.model_type} models cannot be served with this config: their dynamic "
            "RoPE does not follow the formula of transformers"
        )

    def _set_dim(self, dim: int) -> None:
        device = self._original.device
        self._exponent = dim / (dim - 2)
        self._exponents = torch.arange(0, dim, 2, dtype=torch.float, device=device) / dim

    def __call__(self, rope_lens: Tensor) -> Tensor:
        """See `Frequencies`; the operations are those of transformers, in the same order."""
        scale = (self._factor * rope_lens / self.limit) - (self._factor - 1)
        # transformers computes one number here. Vector instructions of CPUs would round otherwise;
        # the stride of 2 prevents them.
        base = self._base * torch.stack((scale, scale), 1)[:, 0] ** self._exponent
        scaled = 1.0 / (base[:, None] ** self._exponents)
        return torch.where(rope_lens[:, None] > self.limit, scaled, self._original)


class PhimoeScale:
    """PhiMoE's own embedding: always the short factors, and a scale that depends on the length."""

    def __init__(self, module: Any) -> None:
        parameters = module.config.rope_parameters
        self._short, self._long = parameters["short_mscale"], parameters["long_mscale"]
        self.limit = int(parameters["original_max_position_embeddings"])
        inv_freq, _ = module.rope_init_fn(module.config)
        self._inv_freq = inv_freq.to(device=module.inv_freq.device, dtype=torch.float)

    def __call__(self, x: Tensor, position_ids: Tensor, rope_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[1, tokens, rotated]`."""
        freqs = position_ids[..., None].float() * self._inv_freq
        emb = torch.cat((freqs, freqs), dim=-1)
        scale = torch.full_like(rope_lens, self._short, dtype=torch.float)
        scale = scale.masked_fill(rope_lens > self.limit, self._long)[:, None]
        return (emb.cos() * scale).to(x.dtype), (emb.sin() * scale).to(x.dtype)


def _frequencies(module: Any, layer_type: str | None, rope_type: str) -> Frequencies:
    return (LongRope if rope_type == "longrope" else DynamicNtk)(module, layer_type)


def _parameters(module: Any, layer_type: str | None) -> dict[str, Any]:
    parameters: dict[str, Any] = module.config.rope_parameters
    return parameters if layer_type is None else parameters[layer_type]


def _computed(
    module: Any, layer_type: str | None, rope_type: str, length: Any, device: torch.device
) -> tuple[Tensor, float]:
    """transformers' inverse frequencies `[rotated / 2]` and scale for one length."""
    compute = ROPE_INIT_FUNCTIONS[rope_type]
    found: tuple[Tensor, float] = compute(
        module.config, device, seq_len=length, layer_type=layer_type
    )
    return found


def _name(layer_type: str | None, name: str) -> str:
    return name if layer_type is None else f"{layer_type}_{name}"

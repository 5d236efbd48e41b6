"""The probe: a forward pass without a KV cache, which shows what each layer attends with."""

from dataclasses import dataclass, field

from torch import Tensor

from workers.model.attention.interface import Form
from workers.model.attention.plain import attend_one
from workers.model.kv_cache import LayerShape


@dataclass(slots=True, frozen=True)
class LayerAttention:
    """The attention of one layer: what it stores for a token, and how it computes."""

    shape: LayerShape
    num_heads: int
    form: Form


@dataclass(slots=True, frozen=True)
class Probe:
    """A context that stores nothing: it records the attention of each layer."""

    layers: dict[int, LayerAttention] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[int, LayerShape]:
        """What each layer stores."""
        return {layer: attention.shape for layer, attention in self.layers.items()}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """See `workers.model.attention.interface.Attend`; attends only within the given tokens."""
        shape = LayerShape(key.shape[0], key.shape[2], value.shape[2])
        self.layers[layer] = LayerAttention(shape, query.shape[0], form)
        return attend_one(query, key, value, form).transpose(0, 1)

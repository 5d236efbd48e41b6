"""The probe: a forward pass without a KV cache, which shows what each layer attends with."""

from dataclasses import dataclass, field

from torch import Tensor

from workers.model.attention.interface import AttentionCall, Form, UnsupportedModelError
from workers.model.attention.masks import Mask, Visible
from workers.model.attention.plain import attend_one
from workers.model.kv_cache import LayerShape


@dataclass(slots=True, frozen=True)
class LayerAttention:
    """The attention of one layer: what it stores for a token, and how it computes."""

    shape: LayerShape
    num_heads: int
    form: Form


@dataclass(slots=True)
class Probe:
    """A context that stores nothing: it records the attention of each layer."""

    num_layers: int
    layers: dict[int, LayerAttention] = field(default_factory=dict)
    calls: dict[tuple[int, int], AttentionCall] = field(default_factory=dict)
    output: Tensor | None = None  # of the stage
    _seen: dict[tuple[int, int], tuple[int, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[int, LayerShape]:
        """What each layer stores."""
        return {layer: attention.shape for layer, attention in self.layers.items()}

    def values_per_token(self, layer: int) -> int:
        """The number of values that a token stores in this layer, over all calls of attention."""
        own = {call.kv_layer for (at, _), call in self.calls.items() if at == layer}
        shapes = (self.layers[kv].shape for kv in own if kv % self.num_layers == layer)
        return sum(shape.values_per_token for shape in shapes)

    def learn(
        self, at: tuple[int, int], key: Tensor, value: Tensor, mask: object, window: int | None
    ) -> AttentionCall:
        """See `workers.model.attention.interface.Learn`."""
        if isinstance(mask, Mask):
            visible = mask.read()
        elif mask is None:
            visible = Visible(window)
        else:
            raise UnsupportedModelError("its attention needs a mask of its own")
        layer, number = at
        memory = (key.data_ptr(), value.data_ptr())
        # The tensors are kept until the end of the probe, so that no other gets their memory.
        kv_layer, *_ = self._seen.setdefault(memory, (layer + number * self.num_layers, key, value))
        call = AttentionCall(kv_layer, visible.sliding_window, visible.chunk_size)
        self.calls[at] = call
        return call

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """See `workers.model.attention.interface.Attend`; attends only within the given tokens."""
        shape = LayerShape(key.shape[0], key.shape[2], value.shape[2])
        self.layers[layer] = LayerAttention(shape, query.shape[0], form)
        return attend_one(query, key, value, form).transpose(0, 1)

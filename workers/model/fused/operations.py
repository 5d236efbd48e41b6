"""The fused operations, which each kind of device implements with kernels of its own."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor


class FusedOperations(Protocol):
    """Operations on the element types of `workers.kernels.library.TYPES`.

    They compute in fp32, and round where torch rounds.
    """

    joins_products: bool
    """Whether gate and up are one product, whose output has them side by side."""

    def rms_norm(
        self, weight: Tensor, epsilon: float, offset: float, rounds: bool
    ) -> Callable[[Tensor], Tensor]:
        """Return the RMSNorm with these weights, of the last dimension of `[..., width]`.

        It is x / sqrt(mean(x^2) + epsilon) * (weight + offset); `rounds` says whether the
        normalised values are rounded before the weights are applied. `weight` must stay alive.
        """
        ...

    def rotate(
        self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, rounds: bool
    ) -> tuple[Tensor, Tensor]:
        """Rotate `[1, heads, tokens, dim]` by `[1, tokens, rotated]` angles, half with half.

        The innermost stride of all tensors is 1, and `cos` and `sin` have the same strides, and
        the type of the heads or float32. `rounds` says whether products are rounded before they
        are added.
        """
        ...

    def gate(self, products: Sequence[Tensor], activation: int) -> Tensor:
        """Return activation(gate) * up, `[..., width]`; see `gated_mlp.ACTIVATIONS`.

        `products` are gate and up `[..., width]`, or with `joins_products` one `[..., 2 x width]`.
        """
        ...

"""Replaces the parts of a model that have a fused kernel."""

from collections import Counter

from torch import nn

from workers.kernels.library import Library
from workers.model.fused import gated_mlp, norms

# Each returns the fused module that gives the same results, or None.
FUSIONS = (norms.fused, gated_mlp.fused)


def fuse(model: nn.Module, library: Library) -> Counter[str]:
    """Replace norms and gated MLPs; returns the number of each class that was put in.

    A module that is used twice is replaced once. Call this before the linear layers are packed.
    """
    counts: Counter[str] = Counter()
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            made = replaced.get(child) or _fused(child, library)
            if made is not None:
                replaced[child] = made
                setattr(parent, name, made)
    for made in set(replaced.values()):
        counts[type(made).__name__] += 1
    return counts


def _fused(module: nn.Module, library: Library) -> nn.Module | None:
    return next((made for f in FUSIONS if (made := f(module, library)) is not None), None)

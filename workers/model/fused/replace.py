"""Replaces the parts of a model that have a fused kernel."""

import logging
from collections import Counter
from collections.abc import Callable

from torch import nn

from workers.model.fused import gated_mlp, norms
from workers.model.fused.gated_mlp import GatedMlp
from workers.model.fused.norms import FusedRmsNorm
from workers.model.fused.operations import FusedOperations
from workers.model.fused.same import first_line

Fuse = Callable[[nn.Module, FusedOperations], nn.Module | None]
# Each returns the fused module that gives the same results, or None.
FUSIONS: dict[str, Fuse] = {"norms": norms.fused, "gated MLPs": gated_mlp.fused}

log = logging.getLogger("tdpipe")


def fuse(model: nn.Module, operations: FusedOperations) -> Counter[str]:
    """Replace norms and gated MLPs; returns the number of each class that was put in.

    A module that is used twice is replaced once. Where a kernel fails, the other parts of its kind
    stay as they are, with a warning. Call this before the linear layers are packed.
    """
    for name, make in FUSIONS.items():
        try:
            _replace(model, make, operations)
        except Exception as error:  # of Triton or the device: too many kinds to name
            log.warning("the %s are not fused: %s", name, first_line(error))
    fused = (FusedRmsNorm, GatedMlp)
    return Counter(type(module).__name__ for module in model.modules() if isinstance(module, fused))


def _replace(model: nn.Module, make: Fuse, operations: FusedOperations) -> None:
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            made = replaced.get(child) or make(child, operations)
            if made is not None:
                replaced[child] = made
                setattr(parent, name, made)

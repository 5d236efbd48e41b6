"""Launches of a layer and of a step on a GPU, counted without one: `make launches`.

A stage's own code runs small random checkpoints on the CPU. Each operation that torch dispatches
counts as one launch unless it only makes a view, names memory or reads sizes, and each launch of
Triton's kernels counts while the kernel itself does not run. An operation of torch may take more
than one kernel (a sort, a split matrix product), so the counts are lower bounds. No times.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are not compiled for a device

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from workers.device.upload import upload_to
from workers.model import batch, partitioning
from workers.model.attention import interface
from workers.model.attention import triton as backend
from workers.model.attention.interface import Attend, Form
from workers.model.fused import triton as fused
from workers.model.kv_cache import KvCache, LayerShape
from workers.model.stage_model import StageModel
from workers.model.structure import Structure
from workers.profiling.dummy_run import DummyRun, decode, make_step, prefill

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}
STEPS = {"decode": decode(8, 100), "prefill": prefill([24, 40])}
NUM_LAYERS, HIDDEN, BLOCK_SIZE, NUM_BLOCKS = 3, 64, 16, 64
LAYER = 1  # the counted one: a layer in the middle, without embedding or head
PARTS = ("attention", "products", "norms", "rotary", "activation", "experts", "other")
FUSABLE = ("norms", "rotary", "activation")
CPU = torch.device("cpu")

_NO_LAUNCH = ("empty", "new_empty", "empty_like", "empty_strided")
_PRODUCTS = ("linear", "mm", "addmm", "_grouped_mm")
# What the kernels between the products are; all others are attention's.
_PARTS_OF_KERNELS = {"rms_norm": "norms", "rotate": "rotary", "gate": "activation"}


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the launches of a forward pass by (layer, part); no layer outside of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[tuple[int | None, str]] = Counter()
        self.is_attending = False
        self._running: list[nn.Module] = []  # outermost first
        self._layers: dict[nn.Module, int] = {}

    def __torch_dispatch__(
        self, function: Any, _: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        name = function._schema.name.partition("::")[2]
        result = function(*arguments, **(keywords or {}))
        is_view = not function._schema.is_mutable and _memory(arguments) >= _memory(result)
        if not is_view and name not in _NO_LAUNCH:
            self.count("products" if name in _PRODUCTS else None)
        return result

    def count(self, part: str | None = None) -> None:
        """Count a launch of this part, or of the part that the running module tells."""
        layer = next((self._layers[m] for m in self._running if m in self._layers), None)
        self.counts[layer, part or self._part()] += 1

    def _part(self) -> str:
        if self.is_attending:
            return "attention"
        for module in reversed(self._running):
            name = type(module).__name__
            for word, part in _PARTS_OF_NAMES:
                if word in name:
                    return part
        return "other"

    @contextmanager
    def watching(self, model: nn.Module, layers: dict[nn.Module, int]) -> Iterator[None]:
        """Follow which module runs."""
        self._layers = layers
        hooks = []
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(self._enter))
            hooks.append(module.register_forward_hook(self._leave))
        with self:
            yield
        for hook in hooks:
            hook.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._running.append(module)

    def _leave(self, *_: Any) -> None:
        self._running.pop()


def _memory(values: Any) -> set[int]:
    """The memory of all tensors in a nest of them."""
    leaves = torch.utils._pytree.tree_leaves(values)
    return {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, Tensor)}


# Words in the class names of transformers' modules, the more special first. What an attention
# module does besides its products is the rotary embedding, and an MLP's own work is its gate.
_PARTS_OF_NAMES = (
    ("Norm", "norms"),
    ("Rotary", "rotary"),
    ("Attention", "rotary"),
    ("Router", "experts"),
    ("Experts", "experts"),
    ("Moe", "experts"),
    ("MLP", "activation"),
    ("GatedMlp", "activation"),
    ("SiLU", "activation"),
    ("DecoderLayer", "other"),
)


class CountedKernels:
    """In place of the module of Triton's kernels: counts launches and runs nothing."""

    def __init__(self, launches: Launches, part: str = "attention") -> None:
        self._launches, self._of_part = launches, part

    def __getattr__(self, kernel: str) -> "CountedKernels":
        return CountedKernels(self._launches, _PARTS_OF_KERNELS.get(kernel, "attention"))

    def __getitem__(self, _: Any) -> Callable[..., None]:
        return lambda *_, **__: self._launches.count(self._of_part)


class CountedStep:
    """The context of a step that tells which launches are attention's."""

    def __init__(self, inner: Attend, launches: Launches) -> None:
        self._inner, self._launches = inner, launches

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """See `workers.model.attention.interface.Attend`."""
        self._launches.is_attending = True
        try:
            return self._inner.attend(layer, query, key, value, form).zero_()
        finally:
            self._launches.is_attending = False
            self._launches.counts[layer, "attention"] -= 1  # the zeros are ours


def make_model(family: str, *, fuses: bool) -> StageModel:
    """A whole small model of this family in bf16, on request with parts fused as on a GPU."""
    config = AutoConfig.for_model(
        family,
        vocab_size=128,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
        **FAMILIES[family],
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation=interface.NAME
    )
    layers = range(NUM_LAYERS)
    partitioning.cut(model, layers, Structure())
    stage = StageModel(model.eval(), layers)
    stage.compiles_for_each_size = False  # as on a GPU
    if fuses:
        stage.fuse(fused.TritonOperations())
    stage.probe(2)  # compares rotary functions too, as a start does
    return stage


def count(model: StageModel, dummy_run: DummyRun) -> Counter[tuple[int | None, str]]:
    """The launches of one step by (layer, part)."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or HIDDEN // config.num_attention_heads
    shape = LayerShape(config.num_key_value_heads, head_dim, head_dim)
    cache = KvCache(dict.fromkeys(model.layers, shape), NUM_BLOCKS, BLOCK_SIZE, model.dtype, CPU)
    attention, launches = backend.TritonBackend(CPU), Launches()
    step = make_step(dummy_run, BLOCK_SIZE, NUM_BLOCKS)
    layers = {module: i for i, module in enumerate(model.layer_modules)}
    counted = CountedKernels(launches)
    with (
        mock.patch.object(backend, "kernels", counted),
        mock.patch.object(fused, "kernels", counted),
    ):
        for _ in range(2):  # the second time, the backend knows the sizes of its tiles
            launches.counts.clear()
            inputs = batch.build(step, BLOCK_SIZE, upload_to(CPU), attention.arrays)
            context = CountedStep(attention.step(cache, inputs), launches)
            with launches.watching(model._model, layers):
                model.forward(inputs.token_ids, inputs.position_ids, inputs.output_at, context)
    return launches.counts


def line(family: str, name: str, *, fuses: bool) -> str:
    """The line of a table of one model and step, with fused parts or without."""
    counts = count(make_model(family, fuses=fuses), STEPS[name])
    layer = {part: counts[LAYER, part] for part in PARTS}
    total = sum(layer.values())
    rest = sum(number for (of_layer, _), number in counts.items() if of_layer is None)
    share = sum(layer[part] for part in FUSABLE) / total
    cells = [
        family,
        name,
        "yes" if fuses else "no",
        *(str(layer[part]) for part in PARTS),
        str(total),
        f"{share:.0%}",
    ]
    return "| " + " | ".join([*cells, str(rest)]) + " |"


def main(argv: Sequence[str]) -> int:
    """Print the table as Markdown. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make launches ARGS=...", description=__doc__)
    parser.add_argument("--family", choices=sorted(FAMILIES), help="only this one")
    options = parser.parse_args(argv)
    header = [
        "model",
        "step",
        "fused",
        *PARTS,
        "a layer",
        "norms, rotary, activation",
        "outside layers",
    ]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for family in [options.family] if options.family else FAMILIES:
        for name, fuses in product(STEPS, (False, True)):
            print(line(family, name, fuses=fuses), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

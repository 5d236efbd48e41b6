"""Triton's kernels compiled for every architecture, without a GPU: `make triton-table`.

Prints the registers, the spilled bytes and the shared memory of each kernel and kind of layer, for
the compute capabilities since Ampere. Exits with 1 if a kernel spills registers or needs more
shared memory than a block may have.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Kernels are defined for compilation only if this is not set.
os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from workers.kernels import triton_attention as kernels
from workers.model.attention.triton import decode_tiles, prefill_tiles, width_of

# Shared memory of a block in KiB, by compute capability (CUDA C++ Programming Guide, table
# "Technical specifications per compute capability").
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
SPLITS = 8


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of layer: dims, query heads of a KV head, and what else the kernels distinguish."""

    key_dim: int
    value_dim: int
    group: int
    dtype: str = "bf16"
    window: int = 0
    has_softcap: bool = False
    has_sinks: bool = False

    def __str__(self) -> str:
        more = [f"window {self.window}"] * bool(self.window)
        more += ["soft cap"] * self.has_softcap + ["sinks"] * self.has_sinks
        return ", ".join([f"{self.key_dim}/{self.value_dim} x {self.group}, {self.dtype}", *more])


KINDS = [
    Kind(64, 64, 3),
    Kind(64, 64, 8, window=128, has_sinks=True),
    Kind(80, 80, 1),
    Kind(96, 96, 1),
    Kind(128, 128, 1),
    Kind(128, 128, 4),
    Kind(128, 128, 8, window=4096),
    Kind(128, 128, 4, "fp16"),
    Kind(192, 128, 1),
    Kind(256, 256, 2, window=4096, has_softcap=True),
    Kind(256, 256, 8),
    Kind(64, 64, 3, "fp32"),
    Kind(128, 128, 4, "fp32"),
    Kind(256, 256, 4, "fp32"),
]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the assembler says of a kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def variants(kind: Kind) -> Iterator[tuple[str, Any, dict[str, Any], dict[str, int]]]:
    """The kernels of a kind of layer: name, kernel, constants and options."""
    itemsize = 4 if kind.dtype == "fp32" else 2
    shape = {
        "KV_HEADS": 8,
        "BLOCK_SIZE": 16,
        "KEY_DIM": kind.key_dim,
        "VALUE_DIM": kind.value_dim,
        "KEY_WIDTH": width_of(kind.key_dim),
        "VALUE_WIDTH": width_of(kind.value_dim),
    }
    yield "write", kernels.write_kv, shape, {}
    attention = shape | {
        "GROUP": kind.group,
        "WINDOW": kind.window,
        "HAS_SOFTCAP": kind.has_softcap,
        "PRECISION": "ieee" if kind.dtype == "fp32" else "tf32",
        "UPCAST": False,
    }
    widest = max(width_of(kind.key_dim), width_of(kind.value_dim))
    tiles = prefill_tiles(widest, itemsize)
    lanes = max(tiles.lanes, width_of(kind.group))
    sizes = {"TOKENS": lanes // kind.group, "LANES": lanes, "TILE": tiles.tokens}
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    more = {"HAS_SINKS": kind.has_sinks}
    yield "prefill", kernels.attend_tiles, attention | more | sizes, options
    tiles = decode_tiles(widest, itemsize, kind.group)
    sizes = {"SPLITS": SPLITS, "LANES": tiles.lanes, "TILE": tiles.tokens}
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    yield "decode", kernels.attend_splits, attention | sizes, options
    constants = {
        "HEADS": 8 * kind.group,
        "VALUE_DIM": kind.value_dim,
        "VALUE_WIDTH": width_of(kind.value_dim),
        "SPLITS": SPLITS,
        "SPLIT_WIDTH": width_of(SPLITS),
    }
    yield "combine", kernels.combine_splits, constants | more, {}


def compile_for(
    capability: int, kind: Kind, kernel: Any, constants: dict[str, Any], options: dict[str, int]
) -> Compiled:
    """Compile a kernel for a compute capability, and assemble it verbosely."""
    names = kernel.arg_names
    signature = {name: _type_of(name, kind, constants) for name in names}
    # Allocations are aligned, and so are the arrays of a step but for their views.
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(names)
        if signature[name].startswith("*") and name not in _INTEGERS
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(built.asm["ptx"])
        file.flush()
        gpu = f"--gpu-name={_architecture(built.asm['ptx'])}"
        command = [_assembler(capability), "-v", gpu, file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (registers,) = re.findall(r"Used (\d+) registers", said)
    spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", said))
    return Compiled(int(registers), spilled, built.metadata.shared)


_INTEGERS = frozenset(
    ["slots", "tile_rows", "tile_begins", "begins", "starts", "tables", "blocks", "decode_rows"]
)


def _type_of(name: str, kind: Kind, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name in _INTEGERS:
        return "*i32"
    if name in ("sinks", "parts", "tops"):
        return "*fp32"
    if name in ("scale", "softcap"):
        return "fp32"
    return "i32" if "_" in name else f"*{kind.dtype}"  # a stride, or a tensor


def _architecture(ptx: str) -> str:
    (name,) = re.findall(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    return str(name)


def _assembler(capability: int) -> str:
    name = "ptxas-blackwell" if capability >= 100 else "ptxas"
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def main(argv: Sequence[str]) -> int:
    """Print the table as Markdown. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make triton-table ARGS=...", description=__doc__)
    add = parser.add_argument
    add("--capabilities", type=int, nargs="+", default=sorted(SHARED_KIB), help="[all]")
    add("--kinds", type=int, help="only so many kinds of layers [all]")
    options = parser.parse_args(argv)
    heads = [
        f"sm_{capability} ({SHARED_KIB[capability]} KiB)" for capability in options.capabilities
    ]
    print(f"Triton {triton.__version__}: registers / spilled bytes / KiB of shared memory\n")
    print(f"| kind of layer | kernel | {' | '.join(heads)} |")
    print("|---" * (2 + len(heads)) + "|")
    is_good = True
    for kind in KINDS[: options.kinds]:
        for name, kernel, constants, settings in variants(kind):
            cells = []
            for capability in options.capabilities:
                found = compile_for(capability, kind, kernel, constants, settings)
                fits = found.shared_bytes <= 1024 * SHARED_KIB[capability]
                is_good &= fits and not found.spilled_bytes
                mark = "" if fits and not found.spilled_bytes else " !"
                shared = f"{found.shared_bytes / 1024:.0f}"
                cells.append(f"{found.registers} / {found.spilled_bytes} / {shared}{mark}")
            print(f"| {kind} | {name} | {' | '.join(cells)} |", flush=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

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
from workers.kernels import triton_elementwise as elementwise
from workers.model.attention.triton import decode_tiles, prefill_tiles, width_of
from workers.model.fused.triton import gate_constants, norm_constants, rotary_constants

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
    chunk: int = 0
    has_softcap: bool = False
    has_sinks: bool = False
    kv_dtype: str = "auto"

    def __str__(self) -> str:
        more = [f"window {self.window}"] * bool(self.window)
        more += [f"chunk {self.chunk}"] * bool(self.chunk)
        more += ["soft cap"] * self.has_softcap + ["sinks"] * self.has_sinks
        more += [f"KV {self.kv_dtype}"] * (self.kv_dtype != "auto")
        return ", ".join([f"{self.key_dim}/{self.value_dim} x {self.group}, {self.dtype}", *more])


KINDS = [
    Kind(64, 64, 3),
    Kind(64, 64, 8, window=128, has_sinks=True),
    Kind(80, 80, 1),
    Kind(96, 96, 1),
    Kind(128, 128, 1),
    Kind(128, 128, 4),
    Kind(128, 128, 8, window=4096),
    Kind(128, 128, 5, chunk=8192),
    Kind(128, 128, 4, "fp16"),
    Kind(192, 128, 1),
    Kind(256, 256, 2, window=4096, has_softcap=True),
    Kind(256, 256, 8),
    Kind(64, 64, 3, kv_dtype="fp8_e4m3"),
    Kind(128, 128, 4, kv_dtype="fp8_e4m3"),
    Kind(128, 128, 4, "fp16", kv_dtype="fp8_e4m3"),
    Kind(128, 128, 4, kv_dtype="fp8_e5m2"),
    Kind(256, 256, 2, window=4096, has_softcap=True, kv_dtype="fp8_e4m3"),
    Kind(128, 128, 4, "fp32", kv_dtype="fp8_e4m3"),
    Kind(64, 64, 3, "fp32"),
    Kind(128, 128, 4, "fp32"),
    Kind(256, 256, 4, "fp32"),
]


@dataclass(frozen=True, slots=True)
class Between:
    """What stands between the products of a model: its widths, and the heads that are rotated."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    dim: int
    rotated: int
    dtype: str = "bf16"

    def __str__(self) -> str:
        heads = f"{self.heads} + {self.kv_heads} heads of {self.dim}"
        return f"{self.hidden}/{self.inner}, {heads}, {self.rotated} rotated, {self.dtype}"


BETWEEN = [
    Between(4096, 14336, 32, 8, 128, 128),
    Between(576, 1536, 9, 3, 64, 64, "fp16"),
    Between(2560, 10240, 32, 32, 80, 32),
    Between(5120, 25600, 64, 8, 128, 128, "fp32"),
    Between(16384, 53248, 128, 8, 128, 128),
]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the assembler says of a kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


Variant = tuple[str, Any, dict[str, Any], dict[str, int]]
"""A kernel's name, the kernel, its constants and options."""


def variants(kind: Kind | Between) -> Iterator[Variant]:
    """The kernels of a kind of layer."""
    return elementwise_variants(kind) if isinstance(kind, Between) else attention_variants(kind)


def elementwise_variants(kind: Between) -> Iterator[Variant]:
    """The kernels between the products; of forms that differ in rounding, the one that rounds."""
    heads, kv_heads = (kind.heads, kind.dim), (kind.kv_heads, kind.dim)
    for name, kernel, constants in (
        ("norm", elementwise.rms_norm, norm_constants(kind.hidden, 1e-5, 0.0, True)),
        ("norm of heads", elementwise.rms_norm, norm_constants(kind.dim, 1e-6, 1.0, False)),
        ("rotary", elementwise.rotate, rotary_constants(heads, kv_heads, kind.rotated, True)),
        ("SiLU", elementwise.gate, gate_constants(kind.inner, 0)),
        ("GELU", elementwise.gate, gate_constants(kind.inner, 1)),
    ):
        options = {name: constants.pop(name) for name in list(constants) if name.islower()}
        yield name, kernel, constants, options


def attention_variants(kind: Kind) -> Iterator[Variant]:
    """The kernels that write the KV cache and attend to it."""
    itemsize = 4 if kind.dtype == "fp32" else 2
    shape = {
        "KV_HEADS": 8,
        "BLOCK_SIZE": 16,
        "KEY_DIM": kind.key_dim,
        "VALUE_DIM": kind.value_dim,
        "KEY_WIDTH": width_of(kind.key_dim),
        "VALUE_WIDTH": width_of(kind.value_dim),
        "KV_FORMAT": ("auto", "fp8_e4m3", "fp8_e5m2").index(kind.kv_dtype),
    }
    yield "write", kernels.write_kv, shape, {}
    attention = shape | {
        "GROUP": kind.group,
        "WINDOW": kind.window,
        "CHUNK": kind.chunk,
        "HAS_SOFTCAP": kind.has_softcap,
        "PRECISION": "ieee" if kind.dtype == "fp32" else "tf32",
        "UPCAST": False,
    }
    widest = max(width_of(kind.key_dim), width_of(kind.value_dim))
    tiles = prefill_tiles(widest, itemsize, shape["KV_FORMAT"])
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
    capability: int,
    kind: Kind | Between,
    kernel: Any,
    constants: dict[str, Any],
    options: dict[str, int],
) -> Compiled:
    """Compile a kernel for a compute capability, and assemble it verbosely."""
    names = kernel.arg_names
    signature = {name: _type_of(name, kind.dtype, constants) for name in names}
    # Allocations are aligned, and so are the arrays of a step but for their views.
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, (name, parameter) in enumerate(zip(names, kernel.params, strict=True))
        if (signature[name].startswith("*") and name not in _INTEGERS)
        or (signature[name] == "i32" and not parameter.do_not_specialize)
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


def _type_of(name: str, dtype: str, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name in _INTEGERS:
        return "*i32"
    if name in ("sinks", "parts", "tops"):
        return "*fp32"
    if name in ("scale", "softcap"):
        return "fp32"
    if name in ("keys", "values") and constants["KV_FORMAT"]:
        return "*u8"
    is_stride = "_" in name and not name.endswith("_out")
    return "i32" if is_stride else f"*{dtype}"  # or a tensor


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
    kinds: list[Kind | Between] = [*KINDS[: options.kinds], *BETWEEN[: options.kinds]]
    for kind in kinds:
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

"""Conversion of a GGUF file into an ordinary checkpoint, by transformers' own loader.

    python -m workers.gguf_conversion FILE DTYPE FOLDER

ends with 0, or prints one line for the user. The whole model is dequantised in the memory of this
process.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from daemon.checkpoint.gguf_file import Conversion
from daemon.checkpoint.gguf_header import GgufError, GgufHeader, read_header
from daemon.processes import child_process

# ggml's types that hold floats; of several in one file the first is the model's, as norms are fp32.
FLOATS = {30: "bfloat16", 1: "float16", 0: "float32"}
QUANTISED = "bfloat16"
# What transformers 5.23 leaves out of a file although it changes answers.
_ROPE_TENSORS = ("rope_freqs.", "rope_factors_")
_ROPE_SETTINGS = ".rope.scaling."


def main(argv: Sequence[str]) -> int:
    """Convert FILE; returns the exit code."""
    file, dtype, folder = argv
    try:
        convert(Conversion(Path(file), dtype, Path(folder)))
    except GgufError as error:
        print(" ".join(str(error).split()))  # noqa: T201 - `daemon.checkpoint.gguf_file` reads it
        return 1
    return 0


def convert(conversion: Conversion) -> None:
    """Write the folder, unless another process just has. Raises `GgufError`."""
    folder = conversion.folder
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if conversion.is_done():
                return
            shutil.rmtree(partial, ignore_errors=True)
            try:
                conversion.finish(partial, _write(conversion, partial))
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise GgufError(f"cannot convert {conversion.file} into {folder}: {error}") from error


def _write(conversion: Conversion, folder: Path) -> dict[str, Any]:
    """Write the checkpoint into the folder; returns its dtype, its bytes and warnings."""
    import torch

    header = read_header(conversion.file)
    _check_tensors(conversion.file, header)
    name = _dtype_of(header) if conversion.dtype == "auto" else conversion.dtype
    dtype: torch.dtype = getattr(torch, name)
    num_bytes = header.num_values * dtype.itemsize
    free_bytes = shutil.disk_usage(folder.parent).free
    if num_bytes > free_bytes:
        raise GgufError(
            f"{conversion.file} takes {num_bytes / 1e9:.1f} GB in {name}, and {folder.parent} has "
            f"{free_bytes / 1e9:.1f} GB free; --data-dir names another folder"
        )
    try:
        model, tokenizer = _load(conversion.file, dtype)
        warnings = _left_out(header, model)
        model.save_pretrained(folder)
        _save_tokenizer(tokenizer, folder)
    except (GgufError, OSError):
        raise
    # A damaged file may raise anything, and so may an unsupported one.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise GgufError(f"transformers cannot read {conversion.file}: {reason}") from error
    return {"dtype": name, "bytes": num_bytes, "warnings": warnings}


def _check_tensors(file: Path, header: GgufHeader) -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    num_bytes = file.stat().st_size
    for name, tensor in header.tensors.items():
        try:
            per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
        except ValueError:
            raise GgufError(
                f"{name} in {file} has type {tensor.type}, which the package gguf does not know; "
                "a newer one may: pip install -U gguf"
            ) from None
        if tensor.offset + tensor.num_values // per_block * block_bytes > num_bytes:
            raise GgufError(f"{file} is truncated: it ends within {name}")


def _dtype_of(header: GgufHeader) -> str:
    """The file's own precision, or that for quantised values."""
    types = {tensor.type for tensor in header.tensors.values()}
    floats = [name for type_, name in FLOATS.items() if type_ in types]
    return floats[0] if types <= FLOATS.keys() else QUANTISED


def _load(file: Path, dtype: Any) -> tuple[Any, Any]:
    """The model and the tokenizer, as transformers reads them. Raises `GgufError`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # An absolute path: transformers prefers a file of this name in the working directory.
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": str(file)}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model, report = AutoModelForCausalLM.from_pretrained(
        **source,
        config=AutoConfig.from_pretrained(**source),
        dtype=dtype,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise GgufError(
            f"{file} lacks {len(lacking)} tensors that {type(model).__name__} needs, e.g. "
            f"{lacking[0]}"
        )
    return model, tokenizer


def _left_out(header: GgufHeader, model: Any) -> list[str]:
    """Warnings of what the file holds and transformers does not read."""
    scaling = [key for key in header.settings if _ROPE_SETTINGS in key]
    scaling += [name for name in header.tensors if name.startswith(_ROPE_TENSORS)]
    parameters = getattr(model.config, "rope_parameters", None) or {}
    warnings = []
    if scaling and parameters.get("rope_type", "default") == "default":
        warnings.append(
            f"transformers does not read its RoPE scaling ({', '.join(scaling)}), so that answers "
            "differ from those of the original checkpoint"
        )
    known = sum(header.tensors[name].num_values for name in scaling if name in header.tensors)
    num_unread = header.num_values - known - sum(p.numel() for p in model.parameters())
    if num_unread > 0:
        warnings.append(f"transformers leaves out {num_unread} of {header.num_values} values")
    return warnings


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save the tokenizer so that it is loaded as it was. Raises `GgufError`."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    saved = AutoTokenizer.from_pretrained(folder)
    if saved.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
        raise GgufError("its tokenizer cannot be saved")


if __name__ == "__main__":
    child_process.tie_to_parent()
    os.environ["TQDM_DISABLE"] = "1"  # stderr is the daemon's log

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    child_process.leave_with(lambda: main(sys.argv[1:]))

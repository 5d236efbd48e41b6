"""The folder of a trained predictor: encoder, tokenizer, head and description."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from predictor.classes import LengthClasses
from predictor.model import LengthModel, Pooling, Reader, longest_input, probabilities

DESCRIPTION, HEAD = "predictor.json", "head.safetensors"
_FORMAT = 1
_WEIGHTS = ("model*.safetensors*", "pytorch_model*")


class PredictorError(ValueError):
    """The folder cannot be used; the message is one line for the user."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `predictor.json`.

    Output lengths are in tokens of the served model; `tokenizer` is the fingerprint of that model's
    tokenizer. `max_tokens` is in tokens of the encoder.
    """

    classes: LengthClasses
    max_tokens: int
    pooling: Pooling
    tokenizer: str | None = None
    accuracy: dict[str, Any] = {}
    versions: dict[str, str] = {}
    format: int = _FORMAT


class Prediction(msgspec.Struct, frozen=True):
    """The prediction for one prompt: the most likely class, the mean length in tokens, and the
    standard deviation of the length's logarithm.
    """

    length_class: int
    predicted_len: int
    spread: float


class Predictor:
    """A model with its tokenizer and description."""

    def __init__(self, model: LengthModel, tokenizer: Any, description: Description) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.reader = Reader(tokenizer, description.max_tokens)
        self.description = description

    @torch.inference_mode()
    def predict(self, prompts: list[str]) -> list[Prediction]:
        """One prediction per prompt, all in one batch; prompts should be of similar length."""
        ids, mask = self.reader.batch(self.reader.ids(prompts))
        device = next(self.model.parameters()).device
        class_probabilities = probabilities(self.model(ids.to(device), mask.to(device)))
        mixture = self.description.classes.mixture(class_probabilities)
        classes = class_probabilities.argmax(axis=1)
        rows = zip(classes, mixture.means, mixture.spreads, strict=True)
        return [Prediction(int(k), max(1, round(mean)), float(spread)) for k, mean, spread in rows]


def load_encoder(folder: Path) -> tuple[Any, Any, bool]:
    """Load (encoder in float32, tokenizer, whether the folder has weights).

    Without weights in the folder, they are random. Raises `PredictorError`.
    """
    _be_quiet()
    if not (folder / "config.json").is_file():
        raise PredictorError(f"{folder} is not the folder of an encoder: it has no config.json")
    has_weights = any(any(folder.glob(pattern)) for pattern in _WEIGHTS)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if has_weights:
            encoder = _encoder_with_weights(folder)
        else:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            encoder = AutoModel.from_config(config, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ImportError) as error:
        raise PredictorError(f"cannot load the encoder in {folder}: {_reason(error)}") from error
    # Neither kind of pooling uses the encoder's pooler, which would only take up memory.
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    num_embeddings = encoder.get_input_embeddings().num_embeddings
    if num_embeddings < len(tokenizer):
        raise PredictorError(
            f"the encoder in {folder} has embeddings for {num_embeddings} tokens, but its "
            f"tokenizer has {len(tokenizer)}"
        )
    return encoder, tokenizer, has_weights


def build(encoder: Any, tokenizer: Any, num_classes: int, max_tokens: int) -> LengthModel:
    """The encoder with a new head; the kind of pooling depends on the tokenizer."""
    pooling = Reader(tokenizer, longest_input(encoder, max_tokens)).pooling
    return LengthModel(encoder, encoder.config.hidden_size, num_classes, pooling)


def save_predictor(predictor: Predictor, folder: Path, dtype: torch.dtype) -> None:
    """Write everything into an existing folder."""
    model = predictor.model
    # The caller's model is rounded as well, so that its accuracy is that of the saved weights.
    model.to(dtype)
    encoder: Any = model.encoder
    encoder.save_pretrained(folder)
    head = {name: weight.contiguous() for name, weight in model.head.state_dict().items()}
    save_file(head, folder / HEAD)
    predictor.tokenizer.save_pretrained(folder)
    description = json.loads(msgspec.json.encode(predictor.description))
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes with 0600, but the daemon may run as another user


def load_predictor(folder: Path) -> Predictor:
    """The predictor in the folder, in float32 on the CPU. Raises `PredictorError`."""
    if not folder.is_dir():
        raise PredictorError(f"there is no folder {folder}")
    description = _read_description(folder / DESCRIPTION)
    encoder, tokenizer, has_weights = load_encoder(folder)
    if not has_weights:
        raise PredictorError(f"{folder} has no weights for its encoder")
    num_classes = len(description.classes)
    model = LengthModel(encoder, encoder.config.hidden_size, num_classes, description.pooling)
    try:
        model.head.load_state_dict(load_file(folder / HEAD))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise PredictorError(f"cannot read {folder / HEAD}: {_reason(error)}") from error
    return Predictor(model.float(), tokenizer, description)


def versions() -> dict[str, str]:
    """The versions that a predictor was trained with."""
    return {"torch": version("torch"), "transformers": transformers.__version__}


def _read_description(path: Path) -> Description:
    try:
        description = msgspec.json.decode(path.read_bytes(), type=Description)
    except FileNotFoundError as error:
        raise PredictorError(f"{path.parent} is not a predictor: it has no {path.name}") from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PredictorError(f"cannot read {path}: {_reason(error)}") from error
    if description.format != _FORMAT:
        raise PredictorError(f"{path} has format {description.format}, not {_FORMAT}")
    if description.max_tokens < 1 or len(description.classes) < 2:
        raise PredictorError(f"{path} has an invalid max_tokens or too few classes")
    return description


def _encoder_with_weights(folder: Path) -> Any:
    """Load the encoder. Raises `ValueError` for a missing weight, which transformers would
    initialise randomly.
    """
    encoder, info = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        weights_only=True,  # old encoders are pickles, from which only tensors must be read
        output_loading_info=True,
    )
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    unfit = [str(name) for name in info.get("mismatched_keys", ())]
    if missing or unfit:
        wrong = sorted([*missing, *unfit])
        raise ValueError(f"{len(wrong)} weights are missing or misshaped, e.g. {wrong[0]}")
    return encoder


def _be_quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

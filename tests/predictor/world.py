"""A small world: encoders of a few thousand weights, and requests with learnable lengths."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from predictor.checkpoint import Description, Predictor, build, load_encoder, save_predictor
from predictor.classes import LengthClasses
from predictor.model import longest_input

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "short", "long", "please", "show", "me", "now")
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "modernbert": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}


def make_encoder(
    folder: Path,
    family: str = "bert",
    *,
    has_cls: bool = True,
    has_weights: bool = True,
    **changes: Any,
) -> Path:
    """The folder of a random encoder with a tokenizer of ten words."""
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": len(WORDS),
            "intermediate_size": 32,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
            **FAMILIES[family],
            **changes,
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(has_cls).save_pretrained(folder)
    config.save_pretrained(folder)
    if has_weights:
        torch.manual_seed(3)
        AutoModel.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def make_tokenizer(has_cls: bool = True) -> PreTrainedTokenizerFast:
    """A word per token, with or without [CLS] before and [SEP] after."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not has_cls:
        return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    )


def make_lines(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Finished requests: one word says whether the answer is short or long."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        word = rng.choice(("short", "long"))
        around = rng.choices(("please", "show", "me", "now"), k=rng.randint(0, 6))
        length = rng.randint(1, 5) if word == "short" else rng.randint(50, 60)
        lines.append({"prompt": " ".join([word, *around]), "output_len": length})
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    """As JSONL."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_predictor(folder: Path, family: str = "bert", **changes: Any) -> Path:
    """The folder of an untrained predictor of two classes."""
    made = make_encoder(folder.with_name(folder.name + "-encoder"), family, **changes)
    encoder, tokenizer, _ = load_encoder(made)
    classes = LengthClasses.fit([2] * 9 + [50], 5)
    torch.manual_seed(5)
    limit = longest_input(encoder, 512)
    model = build(encoder, tokenizer, len(classes), limit)
    description = Description(classes=classes, max_tokens=limit, pooling=model.pooling)
    folder.mkdir()
    save_predictor(Predictor(model, tokenizer, description), folder, torch.float32)
    return folder

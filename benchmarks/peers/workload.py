"""The models and the requests: random weights and random prompts, the same everywhere."""

import json
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 8192
SPECIAL = ("<unk>", "<s>", "</s>")
MODELS: dict[str, dict[str, int]] = {
    "llama-120m": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 2048,
    },
    "llama-600m": {
        "hidden_size": 1536,
        "num_hidden_layers": 20,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": 4096,
    },
}
# Lengths are lognormal: median, mean, smallest, largest.
PROMPT_LENGTHS, OUTPUT_LENGTHS = (90, 200, 4, 1024), (130, 200, 4, 512)


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and the number of tokens that are to be generated, whatever they are."""

    prompt_token_ids: list[int]
    num_output_tokens: int
    turns: list[list[int]] = field(default_factory=list)  # further ones of a conversation


def make_model(folder: Path, name: str) -> Path:
    """A Llama with random bf16 weights and a tokenizer; returns its folder."""
    path = folder / name
    if (path / "model.safetensors").exists():
        return path
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
        **MODELS[name],
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    _tokenizer().save_pretrained(path)
    return path


def make_requests(count: int = 200, seed: int = 20260) -> list[Request]:
    """Requests with random prompts."""
    generator = np.random.default_rng(seed)
    prompts, outputs = (
        _lengths(generator, count, *lengths) for lengths in (PROMPT_LENGTHS, OUTPUT_LENGTHS)
    )
    return [
        Request(_ids(generator, int(prompt)), int(output))
        for prompt, output in zip(prompts, outputs, strict=True)
    ]


def make_shared_prefix(count: int = 40) -> list[Request]:
    """Requests that begin with the same 1,000 tokens (a system prompt), and 50 of their own."""
    generator = np.random.default_rng(20261)
    system = _ids(generator, 1000)
    return [Request(system + _ids(generator, 50), 64) for _ in range(count)]


def make_conversations(count: int = 8) -> list[Request]:
    """Conversations of 8 turns: 60 tokens of the user and 60 of the model in each."""
    generator = np.random.default_rng(20262)
    return [
        Request(_ids(generator, 60), 60, [_ids(generator, 60) for _ in range(7)])
        for _ in range(count)
    ]


def _ids(generator: np.random.Generator, count: int) -> list[int]:
    ids: list[int] = generator.integers(len(SPECIAL), VOCAB_SIZE, count).tolist()
    return ids


def write_requests(requests: Sequence[Request], path: Path) -> None:
    """Write the requests for scripts in other environments."""
    path.write_text(json.dumps([asdict(request) for request in requests]))


def _lengths(
    generator: np.random.Generator, count: int, middle: float, mean: float, low: int, high: int
) -> np.ndarray:
    sigma = np.sqrt(2 * np.log(mean / middle))
    lengths = middle * np.exp(sigma * generator.standard_normal(count))
    clipped: np.ndarray = np.clip(np.round(lengths), low, high).astype(int)
    return clipped


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on Python's standard library."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tokenizer.train([str(path) for path in sources], trainer)
    unknown, begin, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        model_max_length=2048,
    )

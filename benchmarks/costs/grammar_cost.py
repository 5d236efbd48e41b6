"""The cost of grammars: the time of a mask, and a last stage's steps with and without them.

`python -m benchmarks.costs.grammar_cost [--vocab-size 128000]`. Steps are sampled as on a last
stage, in turn for S micro-batches, with products in between that stand for the forward; the random
logits have no preference for JSON, so that the grammar decides every token. "waiting" is the time
in which steps wait for masks and fetch them. A large vocabulary is learned from the Python sources
of the environment, which takes half a minute.
"""

import argparse
import statistics
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from configs.schema.model import DEMO_MODEL
from wire.messages import SamplerSetup, Sampling, Step
from workers.sampling.grammars import Grammars
from workers.sampling.guide import Guide, compile_grammar, first_mask, next_masks
from workers.sampling.sampler import Sampler
from workers.sampling.vocabulary import Vocabulary, make

END_ID = 0
NUM_ROWS = 32
MAX_SOURCE_CHARACTERS = 25_000_000
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 4},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string"},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "zip"],
        },
    },
    "required": ["name", "age", "email", "tags", "address"],
}
GRAMMAR = LLMatcher.grammar_from_json_schema(SCHEMA, overrides={"whitespace_flexible": False})
TEXT = (
    '{"name":"Ada Lovelace, Countess","age":36,"email":"ada@analytical.engine.org","tags":["red",'
    '"blue","blue","green"],"address":{"street":"St James\'s Square, 12","zip":"12345"}}'
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print two tables for the demo's vocabulary and, with the flag, a large one."""
    prog = "python -m benchmarks.costs.grammar_cost"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--vocab-size", type=int, default=0, help="of a large vocabulary [none]")
    parser.add_argument("--steps", type=int, default=60, help="steps of each micro-batch [60]")
    parser.add_argument("--forward-ms", type=float, default=5.0, help="between two samplings [5]")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    cores = [AutoTokenizer.from_pretrained(DEMO_MODEL).backend_tokenizer]
    if options.vocab_size:
        cores.append(learn_tokenizer(options.vocab_size, sources()))
    vocabularies = []
    print("| vocabulary | load, ms | compile, ms | first mask, ms | token and mask, us | max, us |")
    print("|--:|--:|--:|--:|--:|--:|")
    for core in cores:
        vocabulary, figures = time_masks(core)
        vocabularies.append(vocabulary)
        print(f"| {vocabulary.tokenizer.vocab_size:,} | {' | '.join(figures)} |")
    print("\n| vocabulary | S | forward, ms | with a grammar | sampling, ms | waiting, ms |")
    print("|--:|--:|--:|--:|--:|--:|")
    for vocabulary in vocabularies:
        for num_batches, forward_ms in ((1, 0.0), (1, options.forward_ms), (2, options.forward_ms)):
            for guided in (0, 1, NUM_ROWS):
                steps = Steps(vocabulary, num_batches, guided, forward_ms / 1000)
                sampling_s, waiting_s = steps.run(options.steps)
                print(
                    f"| {vocabulary.tokenizer.vocab_size:,} | {num_batches} | {forward_ms:g} "
                    f"| {guided} of {NUM_ROWS} | {1000 * sampling_s:.2f} | {1000 * waiting_s:.2f} |"
                )
    return 0


def time_masks(core: Tokenizer) -> tuple[Vocabulary, list[str]]:
    """Return the tokenizer's vocabulary, and a row of the first table."""
    ids, width = core.get_vocab().values(), core.get_vocab_size()
    began_at = perf_counter()
    vocabulary = make(core.to_str(), ids, width, END_ID)
    loaded_at = perf_counter()
    compiled = compile_grammar(GRAMMAR, vocabulary)
    compiled_at = perf_counter()
    guide = Guide((END_ID,))
    first_mask(guide, compiled, (), vocabulary)
    spans = [loaded_at - began_at, compiled_at - loaded_at, perf_counter() - compiled_at]
    seconds = follow(vocabulary, compiled)
    micro = [1e6 * s for s in seconds]
    figures = [f"{1000 * s:.1f}" for s in spans]
    return vocabulary, [*figures, f"{statistics.fmean(micro):.0f}", f"{max(micro):.0f}"]


def follow(vocabulary: Vocabulary, compiled: LLMatcher, times: int = 5) -> list[float]:
    """Return the seconds to read each token of `TEXT` and compute a mask, in the last repeat."""
    seconds: list[float] = []
    executor = LLExecutor(1)
    for _ in range(times):
        guide, seconds = Guide((END_ID,)), []
        first_mask(guide, compiled, (), vocabulary)
        for token_id in vocabulary.tokenizer.tokenize_str(TEXT):
            assert guide.matcher is not None, "the text does not follow the grammar"
            began_at = perf_counter()
            next_masks([guide], [token_id], vocabulary, executor)
            seconds.append(perf_counter() - began_at)
    return seconds


class Steps:
    """The steps of a last stage without its model; `guided` of their rows have a grammar."""

    def __init__(
        self, vocabulary: Vocabulary, num_batches: int, guided: int, forward_s: float
    ) -> None:
        self._width = vocabulary.tokenizer.vocab_size
        self._grammars = Grammars(self._width, lambda: vocabulary)
        self._sampler = Sampler(self._width, torch.device("cpu"), self._grammars)
        self._num_batches, self._guided = num_batches, guided
        self._forward_s = forward_s
        self._matrix = torch.randn(256, 256)
        generator = torch.Generator().manual_seed(1)
        self._logits = torch.randn(NUM_ROWS + 8, self._width, generator=generator)

    def run(self, num_steps: int) -> tuple[float, float]:
        """Return the mean seconds per step for sampling, and for waiting for masks."""
        spans: list[float] = []
        for number in range(num_steps):
            if number == 2:  # the first steps compile grammars
                spans, self._grammars.waited_s = [], 0.0
            for batch in range(self._num_batches):
                self._forward()
                step = self._step(batch, is_first=not number)
                shift = number % 8
                began_at = perf_counter()
                self._sampler.sample(self._logits[shift : shift + NUM_ROWS], step)
                spans.append(perf_counter() - began_at)
        self._grammars.close()
        return statistics.fmean(spans), self._grammars.waited_s / len(spans)

    def _forward(self) -> None:
        """Compute products, which release the interpreter's lock, for as long as a forward."""
        ends_at = perf_counter() + self._forward_s
        while perf_counter() < ends_at:
            self._matrix @ self._matrix

    def _step(self, batch: int, *, is_first: bool) -> Step:
        sampler_slots = range(batch * NUM_ROWS, (batch + 1) * NUM_ROWS)
        setups = tuple(
            self._setup(sampler_slot, sampler_slot % NUM_ROWS < self._guided)
            for sampler_slot in sampler_slots
        )
        return Step(
            *(1, 1, "decode", b"", b"", b"", b"", b"", b""),
            sampler_slots=array("i", sampler_slots).tobytes(),
            setups=setups if is_first else (),
        )

    def _setup(self, sampler_slot: int, has_grammar: bool) -> SamplerSetup:
        # Greedy: sorting a large vocabulary would hide all else; a bias uses the sampler as well.
        sampling = Sampling(
            temperature=0.0,
            bias_ids=array("i", [END_ID]).tobytes(),
            biases=array("f", [-1.0]).tobytes(),
            grammar=GRAMMAR if has_grammar else "",
        )
        return SamplerSetup(sampler_slot, sampling, 0, (END_ID,), b"", b"")


def learn_tokenizer(vocab_size: int, texts: Iterator[str]) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    core.train_from_iterator(texts, trainer)
    return core


def sources() -> Iterator[str]:
    """Python sources of the environment, in a fixed order."""
    count = 0
    for folder in (Path(np.__file__).parents[1], Path(statistics.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            text = path.read_text(errors="ignore")
            count += len(text)
            if count > MAX_SOURCE_CHARACTERS:
                return
            yield text


if __name__ == "__main__":
    sys.exit(main())

"""The byte-level tokenizer: whole words of the tasks, single capitals and digits, any Unicode."""

from itertools import islice
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.tasks import training_tasks

END, PAD = "<|end|>", "<|pad|>"

# A word with the space or hyphen before it; one digit with its space; one capital; one character.
# Capitals, digits and signs thus never merge, and a model spells or adds symbol by symbol.
_PIECE = r"[ -]?[A-Z]?[a-z]+| ?[0-9]|[A-Z]|[^A-Za-z0-9]"

# A user's message is the prompt itself and one newline, so chat and completions answer alike.
# System messages are left out: the model was never trained to follow one.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}{%- set text = message['content'] | map(attribute='text') | join('') -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{- text.strip() + '\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- text + eos_token -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def build_tokenizer(vocab_size: int, context: int) -> Any:
    """A fast tokenizer of exactly `vocab_size` tokens, learned from ASCII training tasks."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    if core.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus yields {core.get_vocab_size()} tokens, not {vocab_size}")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> list[str]:
    tasks = islice(training_tasks(seed=0), 30_000)
    texts = (text for task in tasks for text in (task.prompt, task.answer))
    return [text for text in texts if text.isascii()]

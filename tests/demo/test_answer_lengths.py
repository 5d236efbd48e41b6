"""Answer lengths: those of the checkpoint's own greedy answers, the end token counted."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.answer_lengths import LONGEST_ANSWER, output_lens
from demo.tasks import Task

MODEL = Path(__file__).parents[2] / "demo" / "model"


def test_a_length_is_that_of_the_whole_answer_and_its_end() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()
    answers = {
        "Count to seven in words.\n": "one two three four five six seven",
        "What is 23 plus 45?\n": "68",
        "Spell TIGER.\n": "T I G E R",
    }
    tasks = [Task("any", prompt, answer) for prompt, answer in answers.items()]
    expected = [len(tokenizer(answer).input_ids) + 1 for answer in answers.values()]
    assert output_lens(model, tokenizer, tasks, batch=2) == expected
    # An answer much longer than the one that was awaited is still counted to its end.
    astray = [Task("any", "Count to seven in words.\n", "one")]
    assert output_lens(model, tokenizer, astray) == expected[:1]
    assert max(expected) < LONGEST_ANSWER

"""The demo tasks are right and separate from training, and the checkpoint answers them."""

import re
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.evaluate import answers
from demo.tasks import KINDS, Task, held_out, is_held_out, training_tasks
from demo.words import DAYS, MONTHS, in_words, with_digits

REPO = Path(__file__).parents[2]
MODEL = REPO / "demo" / "model"
TASKS = held_out(400, seed=7)
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def of_kind(*names: str) -> list[Task]:
    return [task for task in TASKS if task.name in names]


def numbers_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", with_digits(text))]


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "zero"), (13, "thirteen"), (40, "forty"), (99, "ninety-nine"), (100, "one hundred"),
        (117, "one hundred seventeen"), (121, "one hundred twenty-one"), (200, "two hundred"),
    ],
)  # fmt: skip
def test_a_number_has_its_english_name_and_is_read_back(number: int, name: str) -> None:
    assert in_words(number) == name
    assert with_digits(f"from {name} to four") == f"from {number} to 4"


def test_counting_goes_up_by_one_between_the_two_numbers_of_the_prompt() -> None:
    for task in of_kind("count in words", "count in digits"):
        asked, given = numbers_in(task.prompt), numbers_in(task.answer)
        start, stop = asked if len(asked) == 2 else (1, asked[0])
        assert given[0] == start
        assert given[-1] == stop
        assert all(b - a == 1 for a, b in pairwise(given))


def test_an_answer_is_in_words_or_in_digits_as_asked() -> None:
    for task in of_kind("count in words", "count in digits", "count down"):
        assert task.answer[0].isdigit() == ("in digits" in task.prompt)


def test_counting_down_ends_at_the_second_number_or_at_one() -> None:
    for task in of_kind("count down"):
        asked, given = numbers_in(task.prompt), numbers_in(task.answer)
        assert (given[0], given[-1]) == (asked[0], asked[1] if len(asked) == 2 else 1)
        assert all(a - b == 1 for a, b in pairwise(given))


def test_even_and_odd_numbers_are_all_of_them_in_the_range() -> None:
    for task in of_kind("even or odd numbers"):
        start, stop = numbers_in(task.prompt)
        remainder = 0 if "the even" in task.prompt else 1
        assert set(numbers_in(task.answer)) == {
            n for n in range(start, stop + 1) if n % 2 == remainder
        }


def test_steps_are_even_and_arrive() -> None:
    for task in of_kind("steps"):
        step, start, stop = numbers_in(task.prompt)
        given = numbers_in(task.answer)
        assert given[0] == start
        assert given[-1] == stop
        assert {b - a for a, b in pairwise(given)} <= {step}


def test_a_phrase_is_repeated_on_as_many_lines_as_asked() -> None:
    for task in of_kind("repeat", "repeat, numbered"):
        _, phrase, rest = task.prompt.split('"')
        (times,) = numbers_in(rest)
        lines = task.answer.split("\n")
        if "numbered" in rest:
            assert lines == [f"{i + 1} {phrase}" for i in range(times)]
        else:
            assert len(lines) == times
            assert set(lines) == {phrase}


def test_letters_are_those_of_the_word() -> None:
    for task in of_kind("spell", "reverse", "letter count", "letter at"):
        word = re.findall(r"[A-Z]{2,}", task.prompt)[0]
        expected = {
            "spell": word.replace("", " ").strip(),
            "reverse": "".join(reversed(word)),
            "letter count": str(len(word)),
            "letter at": word[numbers_in(task.prompt)[0] - 1] if "is letter" in task.prompt else "",
        }
        assert task.answer == expected[task.name]


def test_days_and_months_follow_each_other_to_the_end_asked_for() -> None:
    for task in of_kind("days", "months"):
        names = DAYS if task.name == "days" else MONTHS
        given = task.answer.split(", ")
        assert f"from {given[0]}" in task.prompt
        assert all(b == (names + names)[names.index(a) + 1] for a, b in pairwise(given))
        if asked := numbers_in(task.prompt):
            assert len(given) == asked[0]
        else:
            assert task.prompt.endswith(f"to {given[-1]}.\n")
            assert len(given) <= len(names)


def test_letters_are_listed_in_alphabetical_or_opposite_order() -> None:
    for task in of_kind("letters"):
        ends = re.findall(r"\b[A-Z]\b", task.prompt)
        parts = task.answer.replace(" ", "").split(",")
        for first, last, part in zip(ends[::2], ends[1::2], parts, strict=True):
            assert (part[0], part[-1]) == (first, last)
            assert part in CAPITALS or part[::-1] in CAPITALS


def test_short_answers_about_numbers_are_right() -> None:
    for task in of_kind("sum", "difference", "comparison", "parity", "neighbour"):
        a, b = (*numbers_in(task.prompt), 0)[:2]
        expected = {
            "plus": a + b, "minus": a - b, "larger": max(a, b), "smaller": min(a, b),
            "after": a + 1, "before": a - 1, "even or odd": "even" if a % 2 == 0 else "odd",
        }  # fmt: skip
        (answer,) = (value for word, value in expected.items() if word in task.prompt)
        assert task.answer == str(answer)


def test_every_kind_is_among_the_held_out_tasks() -> None:
    assert {task.name for task in TASKS} == set(KINDS)


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others() -> None:
    assert held_out(50, seed=3) == held_out(50, seed=3)
    assert held_out(50, seed=3) != held_out(50, seed=4)
    assert list(islice(training_tasks(3), 50)) == list(islice(training_tasks(3), 50))


def test_no_prompt_in_training_is_held_out_however_loosely_it_is_worded() -> None:
    seen = {task.prompt for task in islice(training_tasks(seed=5), 20_000)}
    assert not any(is_held_out(prompt) for prompt in seen)
    assert all(is_held_out(task.prompt) for task in TASKS)
    assert len({task.prompt for task in TASKS}) == len(TASKS)


def test_a_held_out_prompt_stays_held_out_in_every_wording() -> None:
    for task in TASKS:
        bare = task.prompt.strip().rstrip(".?")
        assert is_held_out(bare)
        assert is_held_out(bare[0].lower() + bare[1:])
        assert is_held_out(with_digits(task.prompt))


def test_making_tasks_does_not_load_torch() -> None:
    code = "import sys, demo.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0


def test_the_checkpoint_is_small() -> None:
    with safe_open(MODEL / "model.safetensors", framework="np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    assert sum(_product(shape) for shape in shapes) <= 4_000_000
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 9_000_000


def test_the_layers_can_be_cut_into_two_and_three_stages(model: Any) -> None:
    assert model.config.num_hidden_layers % 6 == 0


@pytest.mark.parametrize(
    "text",
    [
        "Count to seven in words.\n",
        "naïve café\t你好 🙂🏽 \u200d \x00 <|en",
        "  a\n\n  B-c's 12,345  ",
        "",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_users_message_renders_to_the_plain_prompt(tokenizer: Any) -> None:
    prompt = "Count to seven in words.\n"
    for content in (prompt, prompt.strip(), [{"type": "text", "text": prompt}]):
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": content}]
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert rendered == prompt


def test_an_earlier_answer_is_closed_by_the_end_token(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "Spell CAT."},
        {"role": "assistant", "content": "C A T"},
        {"role": "user", "content": "Reverse CAT."},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "Spell CAT.\nC A T<|end|>Reverse CAT.\n"


def test_the_generation_config_stops_at_the_end_token(tokenizer: Any, model: Any) -> None:
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode([tokenizer.eos_token_id]) == "<|end|>"


def test_nine_of_ten_held_out_prompts_are_answered_right(tokenizer: Any, model: Any) -> None:
    tasks = [task for task in TASKS if len(task.answer) < 200][:38]
    texts = answers(model, tokenizer, [task.prompt for task in tasks], tasks)
    right = sum(text == task.answer for task, text in zip(tasks, texts, strict=True))
    assert right >= 0.9 * len(tasks)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype="bfloat16").eval()


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total

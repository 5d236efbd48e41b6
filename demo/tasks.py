"""Short instructions with one right answer each, from one token to several hundred tokens long."""

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from demo.words import ALPHABET, DAYS, MONTHS, capitals, in_words, phrase, with_digits

HELD_OUT_PERCENT = 10
PROMPT_END = "\n"


@dataclass(frozen=True)
class Task:
    """One instruction: `prompt` ends with a newline, `answer` is the exact text that follows."""

    name: str
    prompt: str
    answer: str


def held_out(count: int, seed: int) -> list[Task]:
    """`count` different tasks that training never sees, the kinds in equal shares.

    A kind whose held-out prompts run out leaves its share to the other kinds.
    """
    rng = random.Random(f"held out {seed}")
    chosen: dict[str, Task] = {}
    names = list(KINDS)
    while len(chosen) < count:
        if not names:
            raise ValueError(f"there are fewer than {count} held-out prompts")
        for name in tuple(names):
            task = _new_held_out_task(name, rng, chosen)
            if task is None:
                names.remove(name)
            elif len(chosen) < count:
                chosen[task.prompt] = task
    return list(chosen.values())


def training_tasks(seed: int) -> Iterator[Task]:
    """Endless tasks, none of them held out, some of them worded loosely."""
    rng = random.Random(f"training {seed}")
    names = list(KINDS)
    weights = [KINDS[name].weight for name in names]
    while True:
        task = make_task(rng.choices(names, weights)[0], rng)
        if not is_held_out(task.prompt):
            yield Task(task.name, loosely(task.prompt, rng), task.answer)


def make_task(name: str, rng: random.Random) -> Task:
    """One task of the kind, held out or not."""
    instruction, answer = KINDS[name].make(rng)
    return Task(name, instruction + PROMPT_END, answer)


def is_held_out(prompt: str) -> bool:
    """True for the tenth of all prompts that training must not see.

    Hashed without what a loose wording changes (capitals at the start, the last full stop, "7" or
    "seven"), so that no variant of a held-out prompt is in the training data.
    """
    bare = prompt.strip().rstrip(".?")
    key = with_digits(bare[:1].lower() + bare[1:])
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def loosely(prompt: str, rng: random.Random) -> str:
    """The prompt as it is, or as typed in a hurry: no newline, no full stop, no capital."""
    if rng.random() < 0.6:
        return prompt
    text = prompt.removesuffix(PROMPT_END)
    if rng.random() < 0.5:
        text = text.rstrip(".?")
    if rng.random() < 0.4:
        text = text[0].lower() + text[1:]
    return text + rng.choice(("", PROMPT_END))


def _new_held_out_task(name: str, rng: random.Random, chosen: dict[str, Task]) -> Task | None:
    for _ in range(1000):
        task = make_task(name, rng)
        if is_held_out(task.prompt) and task.prompt not in chosen:
            return task
    return None


# Each function below returns (instruction without its newline, answer).


def _count_in_words(rng: random.Random) -> tuple[str, str]:
    start, stop = _range(rng, longest=100, largest=100, from_one=0.3)
    return f"Count {_from_to(rng, start, stop)} in words.", _words(range(start, stop + 1))


def _count_in_digits(rng: random.Random) -> tuple[str, str]:
    start, stop = _range(rng, longest=150, largest=150, from_one=0.3)
    return f"Count {_from_to(rng, start, stop)} in digits.", _digits(range(start, stop + 1))


def _count_down(rng: random.Random) -> tuple[str, str]:
    stop, start = _range(rng, longest=99, largest=99, from_one=0.3)
    numbers = range(start, stop - 1, -1)
    text = f"Count down from {_number(rng, start)}"
    if stop > 1:
        text += f" to {_number(rng, stop)}"
    if rng.random() < 0.5:
        return f"{text} in words.", _words(numbers)
    return f"{text} in digits.", _digits(numbers)


def _even_or_odd_numbers(rng: random.Random) -> tuple[str, str]:
    start, stop = _range(rng, longest=100, largest=100, from_one=0.2)
    parity = rng.choice(("even", "odd"))
    numbers = [n for n in range(start, stop + 1) if n % 2 == (parity == "odd")]
    if not numbers:
        return _even_or_odd_numbers(rng)
    return f"List the {parity} numbers {_from_to(rng, start, stop, True)}.", _digits(numbers)


def _steps(rng: random.Random) -> tuple[str, str]:
    step = rng.choice((2, 3, 5, 10))
    start = rng.choice((step, rng.randint(1, 40)))
    stop = start + step * _log_uniform(rng, (100 - start) // step)
    text = f"Count in steps of {_number(rng, step)} {_from_to(rng, start, stop, True)}."
    return text, _digits(range(start, stop + 1, step))


def _repeat(rng: random.Random) -> tuple[str, str]:
    words, times = phrase(rng), rng.randint(2, 6)
    return f'Repeat "{words}" {_number(rng, times)} times.', "\n".join([words] * times)


def _repeat_numbered(rng: random.Random) -> tuple[str, str]:
    words, times = phrase(rng), 1 + _log_uniform(rng, 39)
    lines = (f"{i} {words}" for i in range(1, times + 1))
    return f'Repeat "{words}" {_number(rng, times)} times, numbered.', "\n".join(lines)


def _spell(rng: random.Random) -> tuple[str, str]:
    word = capitals(rng)
    return f"Spell {word}.", " ".join(word)


def _reverse(rng: random.Random) -> tuple[str, str]:
    word = capitals(rng)
    return f"Reverse {word}.", word[::-1]


def _letter_count(rng: random.Random) -> tuple[str, str]:
    word = capitals(rng)
    return f"How many letters are in {word}?", str(len(word))


def _letter_at(rng: random.Random) -> tuple[str, str]:
    word = capitals(rng)
    place = rng.randint(1, len(word))
    return f"What is letter {_number(rng, place)} of {word}?", word[place - 1]


def _days(rng: random.Random) -> tuple[str, str]:
    length, first = rng.randint(2, 21), rng.randrange(len(DAYS))
    text = f"List {_number(rng, length)} days from {DAYS[first]}."
    return text, _cycle(DAYS, first, length)


def _months(rng: random.Random) -> tuple[str, str]:
    """By their number, or up to a named one (never the one it starts from)."""
    length, first = rng.randint(2, 24), rng.randrange(len(MONTHS))
    text = f"List {_number(rng, length)} months from {MONTHS[first]}."
    if length <= len(MONTHS) and rng.random() < 0.5:
        last = MONTHS[(first + length - 1) % len(MONTHS)]
        text = f"List the months from {MONTHS[first]} to {last}."
    return text, _cycle(MONTHS, first, length)


def _letters(rng: random.Random) -> tuple[str, str]:
    """One range or two: the single ones are so few that a model would memorise them."""
    ranges = [rng.sample(ALPHABET, 2) for _ in range(rng.choice((1, 2)))]
    text = " and ".join(f"from {first} to {last}" for first, last in ranges)
    letters = (" ".join(_between(first, last)) for first, last in ranges)
    return f"List the letters {text}.", ", ".join(letters)


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return f"What is {a} plus {b}?", str(a + b)


def _difference(rng: random.Random) -> tuple[str, str]:
    b, a = sorted((rng.randint(0, 99), rng.randint(0, 99)))
    return f"What is {a} minus {b}?", str(a - b)


def _comparison(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(200), 2)
    if rng.random() < 0.5:
        return f"Which is larger, {a} or {b}?", str(max(a, b))
    return f"Which is smaller, {a} or {b}?", str(min(a, b))


def _parity(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(0, 999)
    return f"Is {number} even or odd?", "odd" if number % 2 else "even"


def _neighbour(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(1, 998)
    word, step = rng.choice((("after", 1), ("before", -1)))
    return f"Which number comes {word} {_number(rng, number)}?", str(number + step)


def _cycle(names: tuple[str, ...], first: int, length: int) -> str:
    return ", ".join(names[(first + i) % len(names)] for i in range(length))


def _range(rng: random.Random, longest: int, largest: int, from_one: float) -> tuple[int, int]:
    """(start, stop), both included; short ranges are more common than long ones."""
    length = _log_uniform(rng, longest)
    start = 1 if rng.random() < from_one else rng.randint(1, largest - length + 1)
    return start, start + length - 1


def _between(first: str, last: str) -> str:
    """The letters from first to last, in reverse where needed, both included."""
    a, b = ALPHABET.index(first), ALPHABET.index(last)
    return ALPHABET[a : b + 1] if a < b else ALPHABET[b : a + 1][::-1]


def _from_to(rng: random.Random, start: int, stop: int, always_from: bool = False) -> str:
    """The ends as people name them: a start at one is left out half the time."""
    if start == 1 and not always_from and rng.random() < 0.5:
        return f"to {_number(rng, stop)}"
    return f"from {_number(rng, start)} to {_number(rng, stop)}"


def _log_uniform(rng: random.Random, largest: int) -> int:
    return min(largest, int(math.exp(rng.uniform(0.0, math.log(largest + 1)))))


def _number(rng: random.Random, number: int) -> str:
    """Small numbers are sometimes written out, as people do."""
    return in_words(number) if number <= 20 and rng.random() < 0.3 else str(number)


def _words(numbers: range) -> str:
    return " ".join(in_words(number) for number in numbers)


def _digits(numbers: range | list[int]) -> str:
    return " ".join(str(number) for number in numbers)


@dataclass(frozen=True)
class Kind:
    """How a task is made and how often it occurs in training."""

    make: Callable[[random.Random], tuple[str, str]]
    weight: float


KINDS = {
    "count in words": Kind(_count_in_words, 1.0),
    "count in digits": Kind(_count_in_digits, 1.0),
    "count down": Kind(_count_down, 1.5),
    "even or odd numbers": Kind(_even_or_odd_numbers, 1.0),
    "steps": Kind(_steps, 1.5),
    "repeat": Kind(_repeat, 1.0),
    "repeat, numbered": Kind(_repeat_numbered, 2.0),
    "spell": Kind(_spell, 0.7),
    "reverse": Kind(_reverse, 2.0),
    "letter count": Kind(_letter_count, 0.5),
    "letter at": Kind(_letter_at, 1.5),
    "days": Kind(_days, 1.0),
    "months": Kind(_months, 1.0),
    "letters": Kind(_letters, 4.0),
    "sum": Kind(_sum, 3.0),
    "difference": Kind(_difference, 2.0),
    "comparison": Kind(_comparison, 1.5),
    "parity": Kind(_parity, 0.3),
    "neighbour": Kind(_neighbour, 0.7),
}

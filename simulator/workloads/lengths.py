"""Lengths like those of two datasets beside ShareGPT's, without their texts.

Alpaca has one-line instructions, LongBench documents of a few thousand tokens with short answers.
The figures below are assumptions in the range that evaluations of EcoServe and DistServe report for
them, not fits to the datasets. 40,000 draws give:

|           |        | mean | p50  | p90  | p99  |
|-----------|--------|-----:|-----:|-----:|-----:|
| alpaca    | input  |   19 |   17 |   30 |   48 |
| alpaca    | output |  169 |  119 |  354 |  857 |
| longbench | input  | 2677 | 2705 | 3780 | 4000 |
| longbench | output |   94 |   19 |  246 | 1024 |
"""

import random
from collections.abc import Callable
from math import exp, log

MIN_TOKENS = 4
MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS = 4000, 1024


def alpaca_lengths(count: int, rng: random.Random) -> list[tuple[int, int]]:
    """`count` pairs (input tokens, output tokens): both lognormal."""
    return [(_lognormal(17, 0.45, rng), _lognormal(119, 0.85, rng)) for _ in range(count)]


def longbench_lengths(count: int, rng: random.Random) -> list[tuple[int, int]]:
    """`count` pairs (input tokens, output tokens): normal inputs, lognormal outputs."""
    return [
        (_clipped(rng.gauss(2700, 840), MAX_INPUT_TOKENS), _lognormal(19, 2.0, rng))
        for _ in range(count)
    ]


def _lognormal(median: float, sigma: float, rng: random.Random) -> int:
    return _clipped(exp(rng.gauss(log(median), sigma)), MAX_OUTPUT_TOKENS)


def _clipped(length: float, longest: int) -> int:
    return min(longest, max(MIN_TOKENS, round(length)))


LENGTHS: dict[str, Callable[[int, random.Random], list[tuple[int, int]]]] = {
    "alpaca": alpaca_lengths,
    "longbench": longbench_lengths,
}
"""Functions that draw the lengths, by the kind of the workload."""

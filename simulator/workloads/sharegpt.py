"""Lengths like those of ShareGPT, without its texts: two lognormal draws with the paper's filter.

The dataset is not part of the project. The means of its lengths with this filter are public: vLLM's
benchmark counted 229,711 prompt and 203,068 output tokens in 1,000 requests
(vllm-project/vllm#18566, tokenizer of Llama 3.1). The medians below are fitted to these two means;
the spreads are assumptions (a prompt may be a line or a pasted page, answers vary less). 40,000
draws give:

|        | mean | p50 | p90 | p99  |
|--------|-----:|----:|----:|-----:|
| input  |  222 | 134 | 577 |  954 |
| output |  199 | 126 | 446 | 1136 |
"""

import random

# The filter of the paper.
MIN_TOKENS = 4
MAX_INPUT_TOKENS = 1023
MAX_TOTAL_TOKENS = 2048

# (mean, standard deviation) of the logarithm of the length, before the filter.
INPUT_LOG = (5.1, 1.5)
OUTPUT_LOG = (4.85, 1.0)


def draw_lengths(count: int, rng: random.Random, scale: float = 1.0) -> list[tuple[int, int]]:
    """`count` pairs (input tokens, output tokens).

    Both are multiplied by `scale` after the filter, but are never below its minimum.
    """
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        num_input = round(rng.lognormvariate(*INPUT_LOG))
        num_output = round(rng.lognormvariate(*OUTPUT_LOG))
        if _passes(num_input, num_output):
            pairs.append((_scaled(num_input, scale), _scaled(num_output, scale)))
    return pairs


def _passes(num_input: int, num_output: int) -> bool:
    return (
        MIN_TOKENS <= num_input <= MAX_INPUT_TOKENS
        and num_output >= MIN_TOKENS
        and num_input + num_output <= MAX_TOTAL_TOKENS
    )


def _scaled(length: int, scale: float) -> int:
    return max(MIN_TOKENS, round(length * scale))

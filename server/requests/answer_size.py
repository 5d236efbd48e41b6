"""The answer's size: a bound on log-probabilities and token ids, checked before any are generated.

Generated text is bounded by the time it takes. Fields beside it are not: 8,000 ids in a body,
scored with 20 likeliest tokens for 128 choices, would be gigabytes.
"""

from collections import Counter

from server.http.errors import invalid
from server.openai.fields.sampling import SamplingFields

# In JSON, about: a token's log-probability, or that of one of the likeliest; a token itself.
LOGPROB_BYTES, TOKEN_BYTES = 64, 8
# Of all choices of a request: 1,048,576 log-probabilities, as of a prompt of 131,072 tokens with
# seven likeliest each, or of eight answers of 6,000 with twenty; in memory it is twice as much.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

# Bytes by the field that asks for them.
Sizes = Counter[str]


def size_of_prompts(fields: SamplingFields, num_tokens: int, num_prompt_logprobs: int) -> Sizes:
    """The fields about `num_tokens` tokens of prompts, those of each choice counted.

    `num_prompt_logprobs` likeliest tokens are returned for each, -1 for none at all.
    """
    scored = "logprobs" if fields.prompt_logprobs is None else "prompt_logprobs"
    sizes = Sizes({scored: LOGPROB_BYTES * num_tokens * (1 + num_prompt_logprobs)})
    sizes["return_token_ids"] = TOKEN_BYTES * num_tokens * fields.return_token_ids
    return sizes


def size_of_tokens(num_tokens: int, num_logprobs: int) -> Sizes:
    """The log-probabilities of `num_tokens` generated tokens."""
    return Sizes(logprobs=LOGPROB_BYTES * num_tokens * (1 + num_logprobs))


def max_tokens_within(sizes: Sizes, num_logprobs: int) -> int | None:
    """The tokens that may be generated beside `sizes`; None without log-probabilities."""
    if num_logprobs < 0:
        return None
    return (MAX_ANSWER_BYTES - sizes.total()) // size_of_tokens(1, num_logprobs).total()


def check_size(sizes: Sizes) -> None:
    """Raise `ApiError` (400) where the answer would be too large."""
    if sizes.total() > MAX_ANSWER_BYTES:
        ((largest, _),) = sizes.most_common(1)
        message = (
            f"'{largest}' makes the answer too large: it would have some "
            f"{-(-sizes.total() // 2**20)} MiB, and {MAX_ANSWER_BYTES // 2**20} MiB are allowed. "
            "Please ask for fewer log-probabilities, or fewer or shorter completions or prompts."
        )
        raise invalid(message, largest, "invalid_value")

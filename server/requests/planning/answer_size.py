"""The answer's size: limits log-probabilities and token ids before any are generated.

The time to generate text limits its size, but not the size of other fields: a body with 8,000 ids,
scored with the 20 most likely tokens for 128 choices, would produce gigabytes.
"""

from collections import Counter

from server.http.errors import invalid
from server.openai.fields.sampling import SamplingFields

# Approximate bytes in JSON: a log-probability of a token or of one of the most likely; a token id.
LOGPROB_BYTES, TOKEN_BYTES = 64, 8
# For all choices of a request: 1,048,576 log-probabilities. This is enough for a prompt of 131,072
# tokens with the seven most likely each, or eight answers of 6,000 tokens with twenty. In memory
# they take twice as much.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

# Bytes by the field that asks for them.
Sizes = Counter[str]


def size_of_prompts(fields: SamplingFields, num_tokens: int, num_prompt_logprobs: int) -> Sizes:
    """Return the sizes of fields about prompts with `num_tokens` tokens in all choices together.

    Each token is returned with the `num_prompt_logprobs` most likely tokens; -1 returns no
    log-probabilities.
    """
    scored = "logprobs" if fields.prompt_logprobs is None else "prompt_logprobs"
    sizes = Sizes({scored: LOGPROB_BYTES * num_tokens * (1 + num_prompt_logprobs)})
    sizes["return_token_ids"] = TOKEN_BYTES * num_tokens * fields.return_token_ids
    return sizes


def size_of_tokens(num_tokens: int, num_logprobs: int) -> Sizes:
    """Return the size of the log-probabilities of `num_tokens` generated tokens."""
    return Sizes(logprobs=LOGPROB_BYTES * num_tokens * (1 + num_logprobs))


def max_tokens_within(sizes: Sizes, num_logprobs: int) -> int | None:
    """Return how many tokens may be generated besides `sizes`; None without log-probabilities."""
    if num_logprobs < 0:
        return None
    return (MAX_ANSWER_BYTES - sizes.total()) // size_of_tokens(1, num_logprobs).total()


def check_size(sizes: Sizes) -> None:
    """Raise `ApiError` (400) if the answer would be too large."""
    if sizes.total() > MAX_ANSWER_BYTES:
        ((largest, _),) = sizes.most_common(1)
        message = (
            f"'{largest}' makes the answer too large: it would have some "
            f"{-(-sizes.total() // 2**20)} MiB, and {MAX_ANSWER_BYTES // 2**20} MiB are allowed. "
            "Please ask for fewer log-probabilities, or fewer or shorter completions or prompts."
        )
        raise invalid(message, largest, "invalid_value")

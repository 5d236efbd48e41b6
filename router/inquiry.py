"""An inquiry: what the router reads of the body of a generation request.

Values of a wrong type are ignored here: the daemon answers with what is wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.decisions.messages import Kind
from server.http.bodies.body import decode
from wire.prefix_keys import KEY_BYTES, prefix_keys, prompt_bytes

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_MAX_OUTPUT = 2**31
_MAX_NUMBER = 1e15
_WEIGHT = 0.05
_MIN_RATIO, _MAX_RATIO = 0.5, 20.0
# Tokens of an answer of which nothing is known: limits are often far above what is generated.
_USUAL_OUTPUT = 256.0


class TokenRatio:
    """The bytes per token of prompts, learned from the answers: an average that forgets."""

    def __init__(self) -> None:
        self.bytes_per_token = 4.0

    def learn(self, num_bytes: int, num_tokens: int) -> None:
        """Take a prompt of which the daemon has told the tokens."""
        if num_bytes > 0 and num_tokens > 0:
            ratio = min(_MAX_RATIO, max(_MIN_RATIO, num_bytes / num_tokens))
            self.bytes_per_token += _WEIGHT * (ratio - self.bytes_per_token)


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A generation request. `num_prompt_bytes` is 0 if the prompt consists of token ids."""

    body: bytes
    model: str | None
    timeout_s: float | None
    kind: Kind
    num_prompt_bytes: int
    num_prompt_tokens: int
    expected_output: int
    prefix_keys: tuple[int, ...]
    tokens_per_key: float


def read_inquiry(body: bytes, ratio: TokenRatio) -> Inquiry:
    """Read a body. Raises `ApiError` (400) if it is no JSON object."""
    values = decode(body)
    prompt = prompt_bytes(values)
    num_ids = _num_token_ids(values.get("prompt"))
    per_token = len(prompt) / num_ids if num_ids else ratio.bytes_per_token
    model, timeout_s = values.get("model"), values.get("timeout")
    return Inquiry(
        body,
        model if isinstance(model, str) else None,
        _positive(timeout_s) or None,
        _kind(values),
        0 if num_ids else len(prompt),
        num_ids or max(1, round(len(prompt) / per_token)),
        _expected_output(values),
        prefix_keys(values, prompt),
        KEY_BYTES / per_token,
    )


def _kind(values: Mapping[str, Any]) -> Kind:
    """As the daemon tells requests of low priority (`SamplingFields.low_priority`)."""
    is_low = values.get("service_tier") == "flex" or _positive(values.get("priority")) > 0
    return "offline" if is_low else "online"


def _num_token_ids(prompt: object) -> int:
    """The tokens of a prompt of token ids, or of a list of such prompts; 0 for texts."""
    if not isinstance(prompt, list) or not prompt:
        return 0
    if isinstance(prompt[0], int):
        return len(prompt)
    return sum(len(each) for each in prompt if isinstance(each, list))


def _expected_output(values: Mapping[str, Any]) -> int:
    """What the client expects, of all choices; otherwise as usual, but at most its limit."""
    limits = (_positive(values.get(name)) for name in _LIMITS)
    usual = min(next(filter(None, limits), _USUAL_OUTPUT), _USUAL_OUTPUT)
    of_one = _positive(values.get("expected_tokens")) or usual
    return int(min(of_one * max(1.0, _positive(values.get("n"))), _MAX_OUTPUT))


def _positive(value: object) -> float:
    """A positive number; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 < value < _MAX_NUMBER else 0.0

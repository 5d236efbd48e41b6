"""Sampling defaults: what a request that leaves sampling fields out gets, as the model suggests.

As in vLLM, `--generation-config auto` takes them from the model's generation_config.json and `vllm`
from the API. `do_sample` has no effect: a request asks for greedy sampling with temperature 0.
Reference: https://docs.vllm.ai/en/latest/configuration/engine_args.html (generation_config)
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from configs.schema.model import ModelConfig
from server.openai.fields.sampling import SamplingFields
from server.text.tokenizer import GENERATION_CONFIG, TokenizerError, read_generation_config

NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

Fields = TypeVar("Fields", bound=SamplingFields)

log = logging.getLogger("tdpipe")


class SamplingDefaultsError(TokenizerError):
    """A default of the model is not valid; the message is one line for the user."""


@dataclass(frozen=True)
class SamplingDefaults:
    """The defaults of fields by name, and the limit on the output tokens of every request."""

    values: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int | None = None

    def apply(self, fields: Fields) -> Fields:
        """Return the fields with defaults in place of those that the request does not set."""
        missing = {k: v for k, v in self.values.items() if k not in fields.model_fields_set}
        return fields.model_copy(update=missing) if missing else fields

    def limited(self, max_tokens: int | None) -> int | None:
        """Return a number of output tokens, None for no limit, within the model's limit."""
        if self.max_tokens is None or max_tokens is None:
            return max_tokens if max_tokens is not None else self.max_tokens
        return min(max_tokens, self.max_tokens)


def load_sampling_defaults(config: ModelConfig) -> SamplingDefaults:
    """Read the defaults that `config` asks for, and log them.

    Raises `SamplingDefaultsError` if the file has a value that no request may have, and
    `TokenizerError` if the file cannot be read.
    """
    if config.generation_config == "vllm":
        log.info("sampling defaults: those of the API (--generation-config vllm)")
        return SamplingDefaults()
    file = read_generation_config(config)
    values = {name: _checked(name, file[name]) for name in NAMES if file.get(name) is not None}
    max_tokens = file.get("max_new_tokens")
    if max_tokens is not None:
        max_tokens = _checked("max_new_tokens", max_tokens)
    told = [f"{name} {value:g}" for name, value in values.items()]
    told += [f"at most {max_tokens} output tokens"] if max_tokens is not None else []
    log.info(
        "sampling defaults: %s (%s)",
        ", ".join(told) or "those of the API",
        f"by {GENERATION_CONFIG}; --generation-config vllm takes the API's"
        if told
        else f"{GENERATION_CONFIG} has none",
    )
    return SamplingDefaults(values, max_tokens)


def _checked(name: str, value: object) -> Any:
    """Return the value if a request may have it. Raises `SamplingDefaultsError`."""
    kind: Any = Annotated[int, Field(ge=1)]
    if name in NAMES:
        info = SamplingFields.model_fields[name]
        kind = Annotated[info.annotation, *info.metadata]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise SamplingDefaultsError(
            f"{GENERATION_CONFIG}: {name} {value!r}: {reason[0].lower()}{reason[1:]} "
            "(--generation-config vllm ignores the file's sampling defaults)"
        ) from error

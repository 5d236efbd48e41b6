"""The sampling parameters of the offline interface: the HTTP fields with their validation."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from server.openai.fields.completion import DEFAULT_MAX_TOKENS
from server.openai.fields.sampling import SamplingFields
from server.requests.planning.sampling_defaults import NAMES

# Fields that concern the connection, or a request's relation to other requests.
_OF_HTTP = frozenset({"model", "stream", "stream_options", "service_tier", "priority", "user"})


class SamplingParams(SamplingFields):
    """The sampling and stop conditions of an answer, with vLLM's names.

    As in vLLM, a value that is not given is the one shown here, not the model's own default.
    Raises pydantic's `ValidationError`, a `ValueError`, for invalid values.
    """

    model: str = Field("", description="not set here")
    max_tokens: int | None = Field(DEFAULT_MAX_TOKENS, ge=0, description="longest answer")
    logprobs: int | None = Field(
        None,
        ge=-1,
        description="return each token's log-probability, and so many most likely tokens; -1: all",
    )

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _by_text(cls, biases: Any) -> Any:
        """Convert keys to strings: keys are strings in JSON, but may be numbers in Python."""
        return {str(key): value for key, value in biases.items()} if biases else {}

    @model_validator(mode="before")
    @classmethod
    def _none_of_http(cls, given: Any) -> Any:
        wrong = sorted(_OF_HTTP & given.keys()) if isinstance(given, dict) else []
        if wrong:
            raise ValueError(f"{wrong[0]} is for requests over HTTP")
        return given

    def fields(self) -> dict[str, Any]:
        """Return the values as fields of the body of POST /v1/completions.

        Those that a model may have defaults for are always among them.
        """
        given = self.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        return {name: getattr(self, name) for name in NAMES} | given

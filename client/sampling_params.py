"""The sampling parameters of the offline interface: HTTP's fields with the same validation."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from server.openai.fields.completion import DEFAULT_MAX_TOKENS
from server.openai.fields.sampling import SamplingFields

# Fields about a connection, or about a request among others.
_OF_HTTP = frozenset({"model", "stream", "stream_options", "service_tier", "priority", "user"})


class SamplingParams(SamplingFields):
    """Sampling and stop conditions of an answer, by vLLM's names.

    Raises pydantic's `ValidationError`, a `ValueError`, for invalid values.
    """

    model: str = Field("", description="not set here")
    max_tokens: int | None = Field(DEFAULT_MAX_TOKENS, ge=0, description="longest answer")
    logprobs: int | None = Field(
        None,
        ge=0,
        description="return each token's log-probability, and so many most likely tokens",
    )

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _by_text(cls, biases: Any) -> Any:
        """JSON's keys are strings, Python's may be numbers."""
        return {str(key): value for key, value in biases.items()} if biases else {}

    @model_validator(mode="before")
    @classmethod
    def _none_of_http(cls, given: Any) -> Any:
        wrong = sorted(_OF_HTTP & given.keys()) if isinstance(given, dict) else []
        if wrong:
            raise ValueError(f"{wrong[0]} is for requests over HTTP")
        return given

    def fields(self) -> dict[str, Any]:
        """The given values, in the shape of the body of POST /v1/completions."""
        return self.model_dump(mode="json", exclude_unset=True, exclude_none=True)

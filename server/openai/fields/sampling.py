"""The fields that completions and chat share: sampling, stop conditions, output options.

Reference: https://platform.openai.com/docs/api-reference/completions; vLLM's fields beyond it are
marked.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr
from pydantic_core import PydanticCustomError

from server.grammar.grammars import ResponseFormat, StructuredOutputs, grammar_of
from server.http.bodies.body import Body, ListOf, counted_first
from server.http.errors import invalid

MAX_CHOICES = 128
MAX_STOP_STRINGS, MAX_STOP_STRING = 64, 256  # their number, and the characters of each
MAX_NAMED_TOKENS = 1024  # of logit_bias and stop_token_ids, each
MAX_BAD_WORDS, MAX_BAD_WORD = 256, 128  # their number, and the characters of each
MAX_CACHE_SALT = 1024  # characters
MAX_RESUMED = 4096  # choices
# Of OpenAI's tiers, only flex is treated differently; an answer names the tier that was used.
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
LOW_PRIORITY = "flex has low priority, like batches; all others are treated as default"
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _bool(value: object) -> object:
    if not isinstance(value, bool):
        raise PydanticCustomError("only_false", "input should be false")
    return value


# A plain Literal[False] would accept 0, which equals False.
OnlyFalse = Annotated[Literal[False], BeforeValidator(_bool)]


class ResumedChoice(Body):
    """A choice of an answer that another daemon has begun."""

    index: int = Field(ge=0)
    token_ids: ListOf[TokenId] = Field(description="all that the events so far cover")
    finished: bool = Field(False, description="whether there was a finish reason")


class Resume(Body):
    """An answer that another daemon has begun, and that continues here."""

    id: str = Field(min_length=1, max_length=128)
    created: int = Field(ge=0, lt=2**63)
    choices: ListOf[ResumedChoice] = Field(max_length=MAX_RESUMED)
    sequence_number: int | None = Field(
        None, ge=0, lt=2**63, description="of the last event of a response"
    )


# Fields of other servers, and former ones of vLLM, that would change the answer. If they were
# ignored, the client would not see that a constraint, a limit or an input is lost.
UNSUPPORTED_SAMPLING = {
    "guided_json": "use 'structured_outputs' with 'json'",
    "guided_regex": "use 'structured_outputs' with 'regex'",
    "guided_choice": "use 'structured_outputs' with 'choice'",
    "guided_grammar": "use 'structured_outputs' with 'grammar'",
    "guided_json_object": "use 'structured_outputs' with 'json_object'",
    "guided_whitespace_pattern": "use 'structured_outputs' with 'whitespace_pattern'",
    "structural_tag": "use 'structured_outputs'",
    "json_schema": "use 'response_format', or 'structured_outputs' with 'json'",
    "regex": "use 'structured_outputs' with 'regex'",
    "ebnf": "use 'structured_outputs' with 'grammar'",
    "grammar": "use 'structured_outputs' with 'grammar'",
    "logits_processors": "use 'structured_outputs', 'logit_bias' or 'bad_words'",
    "custom_logit_processor": "use 'structured_outputs', 'logit_bias' or 'bad_words'",
    "max_new_tokens": "use 'max_tokens'",
    "max_output_tokens": "use 'max_tokens'",
    "n_predict": "use 'max_tokens'",
    "min_new_tokens": "use 'min_tokens'",
    "stop_sequences": "use 'stop'",
    "stop_regex": "use 'stop'",
    "lora_path": "this server has no adapters",
    "lora_request": "this server has no adapters",
    "prompt_embeds": "prompts are text or token ids",
    "input_embeds": "prompts are text or token ids",
    "multi_modal_data": "this server accepts only text",
    "image_data": "this server accepts only text",
    "kv_transfer_params": "KV caches are not transferred between servers",
}


class StreamOptions(Body):
    """What a stream contains besides its text."""

    include_usage: bool = Field(False, description="end with a chunk that has the usage")
    include_obfuscation: bool = Field(False, description="accepted and ignored: nothing is padded")
    continuous_usage_stats: bool = Field(
        False, description="vLLM's: with include_usage, the usage so far is in every chunk"
    )


class SamplingFields(Body):
    """Fields about a request's answers, for every endpoint."""

    unsupported = UNSUPPORTED_SAMPLING

    model: str | None = Field(
        None, description="only a name of the served model, which it is by default"
    )
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, ge=0, le=1, description="0 is greedy")
    top_k: int = Field(0, ge=-1, lt=2**31, description="vLLM's; -1 or 0 is all tokens")
    min_p: float = Field(0.0, ge=0, le=1, description="vLLM's")
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=2, description="vLLM's; 1 is none")
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]], counted_first(MAX_NAMED_TOKENS)
    ] = Field({}, max_length=MAX_NAMED_TOKENS, description="added to the logits of token ids")
    allowed_token_ids: ListOf[TokenId] = Field(
        [], description="vLLM's: no other token is generated"
    )
    bad_words: ListOf[Annotated[str, Field(max_length=MAX_BAD_WORD)]] = Field(
        [], max_length=MAX_BAD_WORDS, description="vLLM's: never generated"
    )
    stop: str | ListOf[str] = Field(
        [], description="strings that end a choice, which are not returned"
    )
    stop_token_ids: ListOf[TokenId] = Field(
        [], max_length=MAX_NAMED_TOKENS, description="vLLM's: tokens that end a choice"
    )
    include_stop_str_in_output: bool = Field(False, description="vLLM's")
    ignore_eos: bool = Field(False, description="vLLM's: continue after the model's end token")
    min_tokens: int = Field(0, ge=0, description="vLLM's: do not stop before")
    skip_special_tokens: bool = Field(True, description="vLLM's: omit them from the text")
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        lt=2**31,
        description="vLLM's: keep only so many tokens, see truncation_side; -1: all that fit",
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=-1,
        description="vLLM's: score the prompt, with so many most likely tokens; -1: all",
    )
    logprob_token_ids: ListOf[TokenId] = Field(
        [],
        max_length=MAX_NAMED_TOKENS,
        description="vLLM's: with logprobs, return those of these tokens, not of the most likely",
    )
    truncation_side: Literal["left", "right"] = Field(
        "left", description="vLLM's: where truncate_prompt_tokens cuts"
    )
    return_tokens_as_token_ids: bool = Field(
        False, description="vLLM's: write the tokens of log-probabilities as token_id:N"
    )
    return_token_ids: bool = Field(
        False, description="vLLM's: also return prompt and output as ids"
    )
    response_format: ResponseFormat | None = Field(None, description="the answer's form")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="vLLM's: the answer's form, as a schema, an expression or a grammar"
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = Field(0, description="vLLM's; above 0: low priority, like flex")
    service_tier: ServiceTier = Field("auto", description=LOW_PRIORITY)
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_CACHE_SALT,
        description="vLLM's: prefixes are shared only with requests of the same salt",
    )
    expected_tokens: int | None = Field(
        None,
        ge=1,
        lt=2**31,
        description="tdpipe's: the expected length of the answer, for the scheduler",
    )
    timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="tdpipe's: seconds, including the queue, after which the request fails",
    )
    tdpipe_resume: Resume | None = Field(
        None, description="tdpipe's: set by its router, to continue an answer that has begun"
    )
    user: str | None = Field(None, description="accepted and ignored")

    # Sent by vLLM's clients, without effect here.
    use_beam_search: OnlyFalse = Field(False, description="vLLM's: only false")
    length_penalty: float = Field(1.0, description="vLLM's: ignored, it is for beam search")
    spaces_between_special_tokens: bool = Field(True, description="vLLM's: ignored")
    request_id: str | None = Field(None, description="vLLM's: ignored, see X-Request-Id")
    vllm_xargs: dict[str, Any] | None = Field(None, description="vLLM's: ignored")

    _is_resumable: bool = PrivateAttr(default=False)

    @property
    def is_resumable(self) -> bool:
        """Whether the events of the stream have the tokens that they cover."""
        return self.stream and (self._is_resumable or self.tdpipe_resume is not None)

    def make_resumable(self) -> None:
        """A header of the request asks for a resumable stream."""
        self._is_resumable = True

    @property
    def stop_strings(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def grammar(self) -> str:
        """The grammar that the answer must follow, empty for none. Raises `ApiError` (400)."""
        return grammar_of(self.response_format, self.structured_outputs)

    @property
    def grammar_param(self) -> str:
        """The field that asks for the grammar."""
        return "response_format" if self.structured_outputs is None else "structured_outputs"

    @property
    def low_priority(self) -> bool:
        """Whether the request has low priority."""
        return self.service_tier == "flex" or self.priority > 0

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether each event of a stream has the usage so far."""
        options = self.stream_options
        return options is not None and options.include_usage and options.continuous_usage_stats

    def check(self, max_tokens: int | None) -> None:
        """Raise `ApiError` (400) for values that are invalid together."""
        if self.stream_options is not None and not self.stream:
            raise invalid(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                "stream_options",
            )
        if self.tdpipe_resume is not None and not self.stream:
            message = "The 'tdpipe_resume' parameter is only allowed when 'stream' is enabled."
            raise invalid(message, "tdpipe_resume")
        if "" in self.stop_strings:
            raise invalid("'stop' must not hold an empty string.", "stop", "invalid_value")
        if len(self.stop_strings) > MAX_STOP_STRINGS:
            message = f"'stop' holds more than {MAX_STOP_STRINGS} strings."
            raise invalid(message, "stop", "invalid_value")
        if any(len(stop) > MAX_STOP_STRING for stop in self.stop_strings):
            message = f"'stop' holds a string of more than {MAX_STOP_STRING} characters."
            raise invalid(message, "stop", "invalid_value")
        if "" in self.bad_words:
            raise invalid("'bad_words' must not hold an empty string.", "bad_words")
        if not self.allowed_token_ids and "allowed_token_ids" in self.model_fields_set:
            message = "'allowed_token_ids' must not be empty: it would allow no token."
            raise invalid(message, "allowed_token_ids", "invalid_value")
        if self.truncate_prompt_tokens == 0:
            message = "'truncate_prompt_tokens' must be -1 or at least 1."
            raise invalid(message, "truncate_prompt_tokens", "invalid_value")
        if max_tokens is not None and self.min_tokens > max_tokens:
            message = "'min_tokens' is greater than 'max_tokens'."
            raise invalid(message, "min_tokens", "invalid_value")

"""The planner: makes a plan from the fields and prompt tokens of a request, or an error."""

import re
from array import array
from collections.abc import Iterable, Sequence, Set
from typing import TypeVar

from configs.schema.model import ModelConfig
from server.http.errors import invalid, no_such_model
from server.openai.fields.sampling import SamplingFields
from server.requests.engine_client import EngineClient
from server.requests.planning.answer_size import (
    check_size,
    max_tokens_within,
    size_of_prompts,
    size_of_tokens,
)
from server.requests.planning.plan import Plan, pack
from server.requests.planning.sampling_defaults import SamplingDefaults
from server.requests.planning.token_ids import TokenIds
from server.requests.resumption import resumption_of
from server.text.special_stops import find_special_tokens
from server.text.tokenizer import Tokenizer
from wire.messages import Sampling

# Limit on the bytes of token lists, which are sent with each sequence and written to the journal;
# grammars have the same limit.
MAX_LIST_BYTES_OF_REQUEST = 16 * 1024 * 1024
MAX_SHOWN_KEYS, MAX_SHOWN_KEY = 8, 40
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")


Fields = TypeVar("Fields", bound=SamplingFields)


class Planner:
    """Checks requests against the model's token ids and the longest possible sequence."""

    def __init__(
        self,
        model: ModelConfig,
        max_logprobs: int,
        client: EngineClient,
        tokenizer: Tokenizer,
        end_token_ids: Sequence[int],
        defaults: SamplingDefaults = SamplingDefaults(),  # noqa: B008 - frozen
    ) -> None:
        self._model = model
        self._max_logprobs = max_logprobs
        self._client = client
        self._tokenizer = tokenizer
        self._end_token_ids = tuple(end_token_ids)
        self._defaults = defaults
        self.token_ids = TokenIds(client, tokenizer)

    @property
    def max_model_len(self) -> int | None:
        """The longest sequence in tokens; None before the first pipeline was ready."""
        ready = self._client.ready
        return None if ready is None else ready.max_model_len

    async def plan(
        self,
        fields: SamplingFields,
        prompts: Sequence[list[int]],
        *,
        endpoint: str,
        max_tokens: int | None,
        default_max_tokens: int | None,
        num_logprobs: int = -1,
        num_prompt_logprobs: int = -1,
        only_scores: bool = False,
        offline: bool = False,
        grammar: str = "",
        prompt_field: str = "prompt",
    ) -> Plan:
        """Return the plan of a request.

        Raises `ApiError`: 400, 503 before the first pipeline was ready, 429 if too many long texts
        wait to be tokenized.

        Without `max_tokens`, an answer may have `default_max_tokens` tokens (None: up to the
        longest sequence), or fewer if log-probabilities would exceed the limit on the answer's
        size. The model's sampling defaults apply to fields that the request does not set, and their
        limit of tokens to all requests. Each output token is returned with the `num_logprobs` most
        likely tokens, each prompt token with `num_prompt_logprobs`; -1 returns no
        log-probabilities. `prompt_field` is the field that errors name if a prompt is too long.
        """
        self._check_tokens(fields)
        fields = self._defaults.apply(fields)
        if max_tokens is not None:
            max_tokens = self._defaults.limited(max_tokens)
        default_max_tokens = self._defaults.limited(default_max_tokens)
        if only_scores:
            self._client.check_known()
        prompts = [
            self._truncated(prompt, fields, 0 if only_scores else max_tokens or 1)
            for prompt in prompts
        ]
        self.token_ids.check_encoded(prompt_field, prompts)
        all_max_tokens = self._all_max_tokens(
            fields,
            prompts,
            max_tokens,
            default_max_tokens,
            num_logprobs,
            num_prompt_logprobs,
            prompt_field,
        )
        own_stop_ids = frozenset(fields.stop_token_ids)
        end_ids = () if fields.ignore_eos else self._end_token_ids
        bad_words = await self._spelt(fields.bad_words, patient=offline)
        special_tokens = self._tokenizer.special_tokens if fields.stop_strings else {}
        sampling = _sampling(fields, bad_words, num_logprobs, num_prompt_logprobs, grammar)
        _check_copies(sampling, len(prompts) * fields.n)
        _check_choice(fields, sampling, own_stop_ids.union(end_ids))
        return Plan(
            prompts=prompts,
            n=fields.n,
            # The engine always generates; of scored prompts the token is dropped and never fed.
            max_tokens=[1] * len(prompts) if only_scores else all_max_tokens,
            sampling=sampling,
            min_tokens=fields.min_tokens,
            seed=fields.seed,
            stop_strings=fields.stop_strings,
            special_stops=find_special_tokens(fields.stop_strings, special_tokens),
            stop_token_ids=(*end_ids, *sorted(own_stop_ids.difference(end_ids))),
            own_stop_ids=own_stop_ids,
            include_stop=fields.include_stop_str_in_output,
            skip_special_tokens=fields.skip_special_tokens,
            returns_tokens=(fields.return_token_ids or num_logprobs >= 0 or fields.is_resumable),
            only_scores=only_scores,
            expected_tokens=fields.expected_tokens,
            offline=offline,
            low_priority=offline or fields.low_priority,
            endpoint=endpoint,
            model=self._model.name,
            continuous_usage=fields.continuous_usage,
            cache_salt=fields.cache_salt or "",
            resumable=fields.is_resumable,
            resumption=resumption_of(
                fields, all_max_tokens, self.token_ids, only_scores=only_scores
            ),
        )

    def check_model(self, model: str | None) -> None:
        """Raise `ApiError` (404) for a model that is not served here; None is the one that is."""
        if model is not None and model not in self._model.names:
            raise no_such_model(model)

    def check_lengths(self, num_prompt_tokens: Iterable[int], max_tokens: int | None) -> None:
        """Raise `ApiError` (400) if prompts are too long, before they are processed."""
        for number in num_prompt_tokens:
            self._max_tokens(number, max_tokens, None, prompt_field="prompt")

    def with_logprobs(self, fields: Fields, *names: str) -> Fields:
        """Return the fields with numbers of log-probabilities; -1 is that of all token ids.

        Raises `ApiError` (400) if one is more than allowed.
        """
        asked = {name: getattr(fields, name) for name in names}
        num_rows, limit = self.token_ids.num_rows, self._max_logprobs
        counts = {
            name: num_rows if count == -1 else count
            for name, count in asked.items()
            if count is not None
        }
        for name, count in counts.items():
            if limit != -1 and count > limit:
                asks = f" (-1 asks for {num_rows})" if asked[name] == -1 else ""
                message = f"'{name}' must not exceed {limit}{asks}: see --max-logprobs."
                raise invalid(message, name, "invalid_value")
        changed = {name: count for name, count in counts.items() if count != asked[name]}
        fields = fields.model_copy(update=changed) if changed else fields
        return self._with_named_ids(fields, names[0])

    def _with_named_ids(self, fields: Fields, count_field: str) -> Fields:
        """Return the fields with the number of `logprob_token_ids` as that of log-probabilities."""
        token_ids = list(dict.fromkeys(fields.logprob_token_ids))
        if not token_ids:
            return fields
        logprobs = getattr(fields, "logprobs", None)  # chat's is a bool, 0 is a number
        if logprobs is None or logprobs is False:
            message = "'logprob_token_ids' is only allowed when 'logprobs' is enabled."
            raise invalid(message, "logprob_token_ids", "invalid_value")
        if -1 != self._max_logprobs < len(token_ids):
            message = f"'logprob_token_ids' must not have more than {self._max_logprobs} ids."
            raise invalid(message, "logprob_token_ids", "invalid_value")
        return fields.model_copy(
            update={count_field: len(token_ids), "logprob_token_ids": token_ids}
        )

    def _all_max_tokens(
        self,
        fields: SamplingFields,
        prompts: Sequence[list[int]],
        max_tokens: int | None,
        default: int | None,
        num_logprobs: int,
        num_prompt_logprobs: int,
        prompt_field: str,
    ) -> list[int]:
        """Return each prompt's `max_tokens`.

        Raises `ApiError`: 400 if the answer would be too large, and as `_max_tokens`.
        """
        sizes = size_of_prompts(fields, fields.n * sum(map(len, prompts)), num_prompt_logprobs)
        returnable = max_tokens_within(sizes, num_logprobs)  # by all sequences together
        if returnable is not None:
            each = max(returnable // (len(prompts) * fields.n), fields.min_tokens, 1)
            default = min(default or each, each)
        all_max_tokens = [
            self._max_tokens(len(prompt), max_tokens, default, prompt_field=prompt_field)
            for prompt in prompts
        ]
        check_size(sizes + size_of_tokens(fields.n * sum(all_max_tokens), num_logprobs))
        return all_max_tokens

    def _check_tokens(self, fields: SamplingFields) -> None:
        self.token_ids.check("allowed_token_ids", fields.allowed_token_ids)
        self.token_ids.check("stop_token_ids", fields.stop_token_ids)
        self.token_ids.check("logprob_token_ids", fields.logprob_token_ids)
        wrong = [key for key in fields.logit_bias if not _TOKEN_ID.fullmatch(key)]
        if wrong:
            named = ", ".join(repr(key[:MAX_SHOWN_KEY]) for key in wrong[:MAX_SHOWN_KEYS])
            message = f"Invalid key in 'logit_bias': keys must be token ids, not {named}."
            raise invalid(message, "logit_bias", "invalid_value")
        self.token_ids.check("logit_bias", [int(key) for key in fields.logit_bias])

    def _truncated(self, prompt: list[int], fields: SamplingFields, max_tokens: int) -> list[int]:
        """Return the part of a prompt that `truncate_prompt_tokens` keeps."""
        kept = fields.truncate_prompt_tokens
        if kept is None:
            return prompt
        if kept == -1:
            ready = self._client.ready
            kept = max(1, ready.max_model_len - max_tokens) if ready else len(prompt)
        return prompt[:kept] if fields.truncation_side == "right" else prompt[-kept:]

    def _max_tokens(
        self,
        num_prompt_tokens: int,
        max_tokens: int | None,
        default: int | None,
        *,
        prompt_field: str,
    ) -> int:
        """Return the number of tokens that the answer may have.

        Raises `ApiError`: 400 if they do not fit, 503 before the first pipeline was ready.
        """
        ready = self._client.ready
        if ready is None:  # the engine may have been lost while the prompts were read
            if max_tokens != 0:
                self._client.check_known()
            return 0
        wanted = 1 if max_tokens is None else max_tokens
        space = ready.max_model_len - num_prompt_tokens
        if wanted > space:
            message = (
                f"This model's maximum context length is {ready.max_model_len} tokens, however you "
                f"requested {num_prompt_tokens + wanted} tokens ({num_prompt_tokens} in your "
                f"prompt; {wanted} for the completion). Please reduce your prompt; or completion "
                "length."
            )
            param = prompt_field if space < 1 else "max_tokens"
            raise invalid(message, param, "context_length_exceeded")
        if max_tokens is not None:
            return max_tokens
        return space if default is None else min(default, space)

    async def _spelt(self, words: Sequence[str], *, patient: bool) -> tuple[bytes, ...]:
        """Return the tokens of all spellings of the words. Raises `ApiError` (400, 429)."""
        spellings = await self._tokenizer.run(
            2 * sum(map(len, words)),
            lambda: [ids for word in words for ids in self._spellings(word)],
            patient=patient,
        )
        self.token_ids.check_encoded("bad_words", spellings)
        return tuple(map(pack, spellings))

    def _spellings(self, word: str) -> set[tuple[int, ...]]:
        """Return the tokens of a word at the beginning of a text and after a space."""
        texts = {word, " " + word.lstrip(" ")}
        spellings = {tuple(self._tokenizer.encode_plain(text)) for text in texts}
        return {ids for ids in spellings if ids}


def _sampling(
    fields: SamplingFields,
    bad_words: tuple[bytes, ...],
    num_logprobs: int,
    num_prompt_logprobs: int,
    grammar: str,
) -> Sampling:
    bias_ids = [int(key) for key in fields.logit_bias]
    return Sampling(
        # The most likely token alone reaches a `top_p` of 0. After the division by the temperature,
        # another one could be equal to it.
        temperature=fields.temperature if fields.top_p > 0 else 0.0,
        top_p=fields.top_p,
        top_k=max(fields.top_k, 0),
        min_p=fields.min_p,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        repetition_penalty=fields.repetition_penalty,
        bias_ids=pack(bias_ids),
        biases=array("f", fields.logit_bias.values()).tobytes(),
        allowed_token_ids=pack(sorted(set(fields.allowed_token_ids))),
        bad_words=bad_words,
        num_logprobs=num_logprobs,
        logprob_token_ids=pack(fields.logprob_token_ids) if num_logprobs >= 0 else b"",
        num_prompt_logprobs=num_prompt_logprobs,
        grammar=grammar,
    )


def _check_copies(sampling: Sampling, copies: int) -> None:
    """Raise `ApiError` (400) if lists of tokens are too large for this number of sequences."""
    sizes = {
        "allowed_token_ids": len(sampling.allowed_token_ids),
        "bad_words": sum(map(len, sampling.bad_words)),
        "logprob_token_ids": len(sampling.logprob_token_ids),
        "logit_bias": len(sampling.bias_ids) + len(sampling.biases),
    }
    if sum(sizes.values()) * copies > MAX_LIST_BYTES_OF_REQUEST:
        largest = max(sizes, key=lambda field: sizes[field])
        message = f"'{largest}' is too large for {copies} completions."
        raise invalid(message, largest, "invalid_value")


def _check_choice(fields: SamplingFields, sampling: Sampling, stop_ids: Set[int]) -> None:
    """Raise `ApiError` (400) if the fields exclude every possible first token."""
    if not fields.allowed_token_ids:
        return
    banned = {array("i", word)[0] for word in sampling.bad_words if len(word) == len(pack([0]))}
    left = set(fields.allowed_token_ids) - banned
    if not left:
        message = "'bad_words' forbids all of 'allowed_token_ids'."
        raise invalid(message, "allowed_token_ids", "invalid_value")
    if fields.min_tokens and left <= stop_ids:
        message = (
            "'allowed_token_ids' leaves only tokens that end the answer, and those must not come "
            "before 'min_tokens'."
        )
        raise invalid(message, "allowed_token_ids", "invalid_value")

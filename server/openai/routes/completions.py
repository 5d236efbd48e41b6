"""/v1/completions: reads prompts and plans their sequences."""

from collections.abc import Sequence
from functools import partial
from typing import cast

from server.grammar.grammars import CheckedGrammars
from server.http.bodies.body import not_too_deep
from server.http.bodies.unknown_fields import IGNORED, UnknownFields
from server.http.errors import invalid
from server.openai.fields.completion import (
    DEFAULT_MAX_TOKENS,
    CompletionRequest,
    check_num_sequences,
    parse_completion,
)
from server.openai.rendering.completion import CompletionRendering
from server.openai.routes.endpoint import Endpoint
from server.requests.admission import Admission
from server.requests.engine_client import EngineClient
from server.requests.generation import Generations
from server.requests.planning.answer_size import Sizes, check_size
from server.requests.planning.plan import Plan
from server.requests.planning.planner import Planner
from server.requests.reply import Rendering
from server.text.tokenizer import Tokenizer


class Completions(Endpoint[CompletionRequest]):
    """The completions endpoint."""

    path = "/v1/completions"

    def __init__(
        self,
        client: EngineClient,
        admission: Admission,
        planner: Planner,
        generations: Generations,
        tokenizer: Tokenizer,
        grammars: CheckedGrammars,
        fingerprint: str,
        unknown_fields: UnknownFields = IGNORED,
    ) -> None:
        super().__init__(client, admission, planner, generations, unknown_fields)
        self._tokenizer = tokenizer
        self._grammars = grammars
        self._fingerprint = fingerprint

    def _parse(self, body: bytes) -> CompletionRequest:
        return parse_completion(body, self._unknown_fields)

    def _num_sequences(self, fields: CompletionRequest) -> int:
        prompts = _as_list(fields.prompt)
        takes_empty = self._tokenizer.bos_token_id is not None
        if not prompts or not all(prompt or (prompt == "" and takes_empty) for prompt in prompts):
            raise invalid("The prompt must not be empty.", "prompt", "invalid_value")
        num_sequences = len(prompts) * fields.n
        check_num_sequences(num_sequences)
        return num_sequences

    def _needs_engine(self, fields: CompletionRequest) -> bool:
        return fields.max_tokens != 0 or fields.only_scores

    async def _plan(
        self,
        fields: CompletionRequest,
        num_bytes: int,  # noqa: ARG002
        *,
        offline: bool,
    ) -> tuple[Plan, Rendering]:
        request = self._planner.with_logprobs(fields, "logprobs", "prompt_logprobs")
        with not_too_deep():
            grammar = request.grammar
        prompts = await self._read_prompts(request, patient=offline)
        grammar = await self._grammars.check(
            grammar, request.grammar_param, copies=self._num_sequences(request), patient=offline
        )
        plan = await self._planner.plan(
            request,
            prompts,
            endpoint="completions",
            max_tokens=request.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            num_logprobs=-1 if request.logprobs is None else request.logprobs,
            num_prompt_logprobs=request.num_prompt_logprobs,
            only_scores=request.only_scores,
            offline=offline,
            grammar=grammar,
        )
        echoes = await self._echoes(request, plan.prompts, patient=offline)
        check_size(Sizes(echo=request.n * sum(map(len, echoes))))
        rendering = CompletionRendering(request, plan, echoes, self._tokenizer, self._fingerprint)
        return plan, rendering

    async def _read_prompts(self, request: CompletionRequest, *, patient: bool) -> list[list[int]]:
        """Return the token ids of each prompt. Raises `ApiError` (400, 429)."""
        prompts = _as_list(request.prompt)
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        token_ids = [prompt for prompt in prompts if not isinstance(prompt, str)]
        if request.truncate_prompt_tokens is None:
            self._planner.check_lengths(map(len, token_ids), request.max_tokens)
        self._planner.token_ids.check("prompt", *token_ids)
        token_ids += await self._tokenizer.encode_all(
            texts, add_special_tokens=request.add_special_tokens, patient=patient
        )
        bos_token_id = self._tokenizer.bos_token_id
        if bos_token_id is not None:  # an empty text is the beginning of any text
            token_ids = [ids or [bos_token_id] for ids in token_ids]
        if not all(token_ids):
            raise invalid("The prompt must hold at least one token.", "prompt", "invalid_value")
        return token_ids

    async def _echoes(
        self, request: CompletionRequest, prompts: Sequence[Sequence[int]], *, patient: bool
    ) -> list[str]:
        """Return the text of each prompt if it is echoed. Raises `ApiError` (429)."""
        if not request.echo:
            return []
        if request.has_text_prompts and request.truncate_prompt_tokens is None:
            return [given for given in _as_list(request.prompt) if isinstance(given, str)]
        decode = partial(self._tokenizer.decode, skip_special_tokens=False)
        return await self._tokenizer.run(
            sum(map(len, prompts)), lambda: list(map(decode, prompts)), patient=patient
        )


def _as_list(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    """Return the prompts as a list; the first item shows the kind of all items of a list."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    return cast(list[str | list[int]], prompt)

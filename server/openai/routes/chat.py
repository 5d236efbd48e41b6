"""/v1/chat/completions: renders a conversation and plans its answers."""

import logging
from dataclasses import replace
from typing import Any

import msgspec

from configs.model import ChatConfig
from server.chat import reasoning
from server.chat.chat_template import ChatTemplate, continued
from server.chat.message_formats import formats_of
from server.chat.tool_calls import CallFormat
from server.chat.tool_choice import ToolChoice, parameters_param, tool_choice
from server.grammar import grammar_text
from server.grammar.grammars import CheckedGrammars, check_text
from server.http.body import not_too_deep
from server.http.errors import ApiError, invalid
from server.openai.fields.chat import ChatRequest, parse_chat
from server.openai.rendering.chat import ChatRendering
from server.openai.routes.endpoint import Endpoint
from server.requests.admission import Admission
from server.requests.answer_size import Sizes, check_size
from server.requests.engine_client import EngineClient
from server.requests.generation import Generations
from server.requests.plan import Plan
from server.requests.planner import Planner
from server.requests.reply import Rendering
from server.text.tokenizer import Tokenizer

logger = logging.getLogger("tdpipe")
_encode = msgspec.json.Encoder().encode


class Chat(Endpoint[ChatRequest]):
    """The chat endpoint."""

    path = "/v1/chat/completions"

    def __init__(
        self,
        config: ChatConfig,
        client: EngineClient,
        admission: Admission,
        planner: Planner,
        generations: Generations,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        grammars: CheckedGrammars,
        fingerprint: str,
    ) -> None:
        super().__init__(client, admission, planner, generations)
        self._tokenizer = tokenizer
        self._template = template
        self._grammars = grammars
        self._fingerprint = fingerprint
        self._formats = formats_of(config, template.source)
        logger.info("chat: %s", self._formats if template.source else "no chat template")

    def _parse(self, body: bytes) -> ChatRequest:
        return parse_chat(body)

    def _num_sequences(self, fields: ChatRequest) -> int:
        return fields.n

    def _needs_engine(self, fields: ChatRequest) -> bool:  # noqa: ARG002
        return True

    async def _plan(
        self, fields: ChatRequest, num_bytes: int, *, offline: bool
    ) -> tuple[Plan, Rendering]:
        request = fields
        self._planner.check_num_logprobs(request.num_logprobs, "top_logprobs")
        choice = self._tool_choice(request)
        conversation = replace(
            request.conversation(request.messages, choice.for_template(), num_bytes),
            documents=request.documents,
            variables=_effort(request) | request.chat_template_kwargs,
        )
        prompt = await self._template.render_text(conversation, patient=offline)
        begun = continued(prompt, conversation)
        opened = reasoning.leaves_open(prompt, begun)
        with not_too_deep():
            grammar = await self._grammar(request, choice, opened=opened, patient=offline)
        token_ids = await self._template.encode(
            prompt, add_special_tokens=request.add_special_tokens, patient=offline
        )
        plan = await self._planner.plan(
            self._with_markers(request, choice),
            [token_ids],
            endpoint="chat",
            max_tokens=request.answer_tokens,
            default_max_tokens=None,
            num_logprobs=request.num_logprobs,
            num_prompt_logprobs=(
                -1 if request.prompt_logprobs is None else request.prompt_logprobs
            ),
            offline=offline,
            grammar=grammar,
            prompt_field="messages",
        )
        echo = begun if request.echo else ""
        check_size(Sizes(echo=request.n * len(echo)))
        if self._formats.thinks:
            plan = replace(plan, reasoning="opened" if opened else "marked")
        several = request.parallel_tool_calls
        parser = self._formats.reader(choice, several=several, opened=opened)
        rendering = ChatRendering(
            request,
            plan,
            self._tokenizer,
            parser,
            self._fingerprint,
            echo=echo,
        )
        return plan, rendering

    def _tool_choice(self, request: ChatRequest) -> ToolChoice:
        """Return the tool choice. Raises `ApiError` (400), also if the prompt omits the tools."""
        choice = tool_choice(request)
        is_free = choice.shown and not choice.is_forced
        if is_free and not self._template.takes_tools(request.chat_template):
            message = (
                "The chat template shows no tools to the model. A call can be forced with "
                "'tool_choice'."
            )
            raise invalid(message, "tools", "unsupported_parameter")
        return choice

    async def _grammar(
        self, request: ChatRequest, choice: ToolChoice, *, opened: bool, patient: bool
    ) -> str:
        """Return the grammar that the answer must follow; empty for none. Raises `ApiError`.

        If tools may be called, `response_format` applies to answers without calls. If the prompt
        has opened the reasoning, the reasoning comes before answers and calls.
        """
        param = request.grammar_param
        grammar = await self._grammars.check(request.grammar, param, patient=patient)
        call_format = self._formats.of_calls(choice)
        special_tokens = self._tokenizer.special_tokens
        if call_format is not None and (grammar or choice.is_forced):
            _check_schemas(request, choice)
            several = request.parallel_tool_calls
            # If the answer may also be JSON, calls must allow the same white space.
            whitespace = None if choice.is_forced else grammar_text.WHITESPACE
            calls = call_format.grammar(
                choice.schemas, special_tokens, several=several, whitespace=whitespace
            )
            grammar = calls if choice.is_forced else grammar_text.either(grammar, calls)
            param = "tools"
        if grammar and opened:
            begin, end = reasoning.BEGIN, reasoning.END
            grammar = grammar_text.after_reasoning(grammar, begin, end, special_tokens)
        try:
            return await self._grammars.check(grammar, param, copies=request.n, patient=patient)
        except ApiError as error:
            if param == "tools" and call_format is not None and error.status == 400:
                await self._check_each_tool(request, choice, call_format, patient=patient)
            raise

    async def _check_each_tool(
        self, request: ChatRequest, choice: ToolChoice, call_format: CallFormat, *, patient: bool
    ) -> None:
        """Raise `ApiError` (400) for the first tool with a grammar that fails by itself."""
        schemas = dict(choice.schemas)
        for index, tool in enumerate(request.tools):
            if (name := tool.function.name) in schemas:
                single = call_format.grammar(
                    [(name, schemas[name])], self._tokenizer.special_tokens, several=False
                )
                await self._grammars.check(single, parameters_param(index), patient=patient)

    def _with_markers(self, request: ChatRequest, choice: ToolChoice) -> ChatRequest:
        """Keep special tokens in the text if the parsers search for some of them."""
        markers = self._formats.markers(self._formats.of_calls(choice))
        if markers.isdisjoint(self._tokenizer.special_tokens):
            return request
        return request.model_copy(update={"skip_special_tokens": False})


def _check_schemas(request: ChatRequest, choice: ToolChoice) -> None:
    """Raise `ApiError` (400) if a schema, or all schemas together, are too large to check."""
    sizes = {name: len(_encode(schema)) for name, schema in choice.schemas}
    for index, tool in enumerate(request.tools):
        check_text(sizes.get(tool.function.name, 0), parameters_param(index))
    check_text(sum(sizes.values()), "tools")


def _effort(request: ChatRequest) -> dict[str, Any]:
    """Return the reasoning effort as the two variables that chat templates use for it."""
    if request.reasoning_effort is None:
        return {}
    if request.reasoning_effort == "none":
        return {"enable_thinking": False}
    return {"reasoning_effort": request.reasoning_effort}

"""/v1/chat/completions: renders a conversation and plans its answers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from configs.schema.model import ChatConfig
from server.chat import reasoning
from server.chat.call_formats import CallFormat
from server.chat.chat_template import ChatTemplate, continued
from server.chat.message_formats import formats_of
from server.chat.message_parser import MessageParser
from server.chat.tool_choice import ToolChoice, parameters_param, tool_choice
from server.grammar import grammar_text
from server.grammar.grammars import CheckedGrammars, check_text
from server.grammar.schema_keywords import check_keywords
from server.http.bodies.body import not_too_deep
from server.http.bodies.unknown_fields import IGNORED, UnknownFields
from server.http.errors import ApiError, invalid
from server.openai.fields.chat import ChatRequest, parse_chat
from server.openai.rendering.chat import ChatRendering
from server.openai.routes.endpoint import Endpoint
from server.requests.admission import Admission
from server.requests.engine_client import EngineClient
from server.requests.generation import Generations
from server.requests.planning.answer_size import Sizes, check_size
from server.requests.planning.plan import Plan
from server.requests.planning.planner import Planner
from server.requests.reply import Rendering
from server.text.tokenizer import Tokenizer

logger = logging.getLogger("tdpipe")
_encode = msgspec.json.Encoder().encode


class Chat(Endpoint[ChatRequest]):
    """The chat endpoint."""

    path = "/v1/chat/completions"

    def __init__(
        self,
        client: EngineClient,
        admission: Admission,
        planner: Planner,
        generations: Generations,
        conversations: "ConversationPlanner",
        tokenizer: Tokenizer,
        fingerprint: str,
        unknown_fields: UnknownFields = IGNORED,
    ) -> None:
        super().__init__(client, admission, planner, generations, unknown_fields)
        self._conversations = conversations
        self._tokenizer = tokenizer
        self._fingerprint = fingerprint

    def _parse(self, body: bytes) -> ChatRequest:
        return parse_chat(body, self._unknown_fields)

    def _num_sequences(self, fields: ChatRequest) -> int:
        return fields.n

    def _needs_engine(self, fields: ChatRequest) -> bool:  # noqa: ARG002
        return True

    async def _plan(
        self, fields: ChatRequest, num_bytes: int, *, offline: bool
    ) -> tuple[Plan, Rendering]:
        request = self._planner.with_logprobs(fields, "top_logprobs", "prompt_logprobs")
        planned = await self._conversations.plan(request, num_bytes, offline=offline)
        rendering = ChatRendering(
            request,
            planned.plan,
            self._tokenizer,
            planned.new_parser,
            self._fingerprint,
            echo=planned.echo,
        )
        return planned.plan, rendering


@dataclass(frozen=True)
class PlannedConversation:
    """A plan, and what its rendering needs.

    `new_parser` creates a choice's parser, if there is one. `echo` is the beginning of the message
    that the prompt already contains, if the request asks to return it.
    """

    plan: Plan
    new_parser: Callable[[], MessageParser] | None
    echo: str


class ConversationPlanner:
    """Plans conversations, for every endpoint that takes them."""

    def __init__(
        self,
        config: ChatConfig,
        planner: Planner,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        grammars: CheckedGrammars,
    ) -> None:
        self._planner = planner
        self._tokenizer = tokenizer
        self._template = template
        self._grammars = grammars
        self._formats = formats_of(config, template.source)
        logger.info("chat: %s", self._formats if template.source else "no chat template")

    async def plan(
        self, request: ChatRequest, num_bytes: int, *, offline: bool
    ) -> PlannedConversation:
        """Plan the answers to a conversation, whose body has `num_bytes`. Raises `ApiError`."""
        choice = self._tool_choice(request)
        conversation = replace(
            request.conversation(request.messages, choice.for_template(), num_bytes),
            documents=request.documents,
            variables=_effort(request) | request.chat_template_kwargs,
        )
        prompt = await self._template.render_text(conversation, patient=offline)
        begun = continued(prompt, conversation)
        opened = reasoning.leaves_open(prompt, begun)
        thinks = opened or (self._formats.thinks and not reasoning.is_closed(prompt))
        with not_too_deep():
            grammar, param = await self._form(request, choice, patient=offline)
            if thinks:
                grammar, param = self._after_reasoning(request, grammar, param, opened=opened)
            grammar = await self._grammars.check(grammar, param, copies=request.n, patient=offline)
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
        several = choice.several(request.parallel_tool_calls)
        parser = self._formats.reader(
            choice,
            several=several,
            opened=opened,
            # Otherwise a stop string within a call would leave half a call.
            only_whole=bool(plan.stop_strings or plan.own_stop_ids),
        )
        return PlannedConversation(plan, parser, echo)

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

    async def _form(
        self, request: ChatRequest, choice: ToolChoice, *, patient: bool
    ) -> tuple[str, str]:
        """Return the checked grammar of the answer and the field that asks for it; empty for none.

        If tools may be called, `response_format` applies to answers without calls. Raises
        `ApiError`.
        """
        param = request.grammar_param
        grammar = await self._grammars.check(request.grammar, param, patient=patient)
        call_format = self._formats.of_calls(choice)
        if call_format is None or not (grammar or choice.is_forced):
            return grammar, param
        _check_schemas(request, choice)
        # If the answer may also be JSON, calls must allow the same white space.
        calls = call_format.grammar(
            choice.schemas,
            self._tokenizer.special_tokens,
            several=choice.several(request.parallel_tool_calls),
            whitespace=None if choice.is_forced else grammar_text.WHITESPACE,
        )
        grammar = calls if choice.is_forced else grammar_text.either(grammar, calls)
        try:
            return await self._grammars.check(grammar, "tools", patient=patient), "tools"
        except ApiError as error:
            if error.status == 400:
                await self._check_each_tool(request, choice, call_format, patient=patient)
            raise

    def _after_reasoning(
        self, request: ChatRequest, grammar: str, param: str, *, opened: bool
    ) -> tuple[str, str]:
        """Return the grammar with the reasoning before it, and the field that asks for it.

        A free answer needs no grammar, unless the reasoning is limited. Raises `ApiError` (400).
        """
        budget = request.thinking_token_budget
        if not grammar and budget is None:
            return grammar, param
        begin, end, ids = reasoning.BEGIN, reasoning.END, self._tokenizer.added_tokens
        if budget is not None and end not in ids:
            message = (
                f"'thinking_token_budget' is not supported: the model writes {end} as several "
                "tokens, and only a single one can be forced."
            )
            raise invalid(message, "thinking_token_budget", "unsupported_parameter")
        if budget is None and end in ids:
            budget = self._default_budget(request)
        limited = grammar_text.after_reasoning(
            grammar, begin, end, ids, opened=opened, budget=budget
        )
        return limited, param if grammar else "thinking_token_budget"

    def _default_budget(self, request: ChatRequest) -> int | None:
        """Return the limit of reasoning before a form, so that there are tokens left for the form.

        It is the largest power of two in half of the answer's limit: a grammar is checked for each
        limit, and few different ones are soon known.
        """
        limit = request.answer_tokens or self._planner.max_model_len
        return None if limit is None else 1 << max(0, (limit // 2).bit_length() - 1)

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
        if tool.function.name in sizes:
            check_keywords(tool.function.parameters or {}, parameters_param(index))
    check_text(sum(sizes.values()), "tools")


def _effort(request: ChatRequest) -> dict[str, Any]:
    """Return the reasoning effort as the two variables that chat templates use for it."""
    if request.reasoning_effort is None:
        return {}
    if request.reasoning_effort == "none":
        return {"enable_thinking": False}
    return {"reasoning_effort": request.reasoning_effort}

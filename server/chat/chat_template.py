"""The chat template: from a conversation to the prompt's text and token ids.

transformers renders the template in jinja's sandbox, as in training and in other servers. Templates
accept different message shapes; test renderings show which ones.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from configs.schema.model import ChatConfig
from server.http.errors import ApiError, invalid
from server.openai.fields.conversation import Conversation
from server.text.bounded_threads import BoundedThreads
from server.text.tokenizer import MAX_INLINE_CHARACTERS, Tokenizer

# Longer conversations are rendered in separate threads.
NUM_THREADS = 2
MAX_WAITING = 64
RENDER_TIMEOUT_S = 10.0
# Twice the largest body: a template that renders more than this repeats itself.
MAX_RENDERED_CHARACTERS = 16 * 1024 * 1024
MAX_REASON_CHARACTERS = 300
SHORT_ID = 9  # characters

logger = logging.getLogger("tdpipe")

_PROBE, _ANSWER = "Wie geht es dir?", "Es geht mir gut."

Message = dict[str, Any]

_USER: Message = {"role": "user"}


class ChatTemplateError(Exception):
    """The file of `--chat-template` cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Traits:
    """What a template accepts: contents as strings, contents as lists of parts, a call's arguments
    as objects, the developer role; and whether identifiers of calls must have nine characters.
    """

    strings: bool
    parts: bool
    objects: bool
    developer: bool
    short_ids: bool


class ChatTemplate:
    """Renders conversations for one model.

    `source` replaces the model's own template. With `trust_requests`, a conversation may bring its
    own template, although the sandbox does not limit a template's time and memory.
    """

    def __init__(
        self, tokenizer: Tokenizer, source: str | None = None, *, trust_requests: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._own = tokenizer.chat_templates if source is None else {"default": source}
        self._trust_requests = trust_requests
        self._threads = BoundedThreads(
            NUM_THREADS, "long conversations", MAX_WAITING, "chat_template"
        )
        self._traits = lru_cache(maxsize=16)(self._find_traits)
        for own in self._own.values():  # now, so that the first request does not wait for it
            self._traits(own)

    @property
    def source(self) -> str:
        """The template for conversations with tools; empty if there is none."""
        return self._own.get("tool_use") or self._own.get("default") or ""

    async def render(
        self, conversation: Conversation, *, add_special_tokens: bool = False
    ) -> list[int]:
        """Return the prompt's token ids. By default, only the template adds special tokens.

        Raises `ApiError` (400, 429) like `render_text` and `encode`.
        """
        text = await self.render_text(conversation)
        return await self.encode(text, add_special_tokens=add_special_tokens)

    async def encode(
        self, text: str, *, add_special_tokens: bool = False, patient: bool = False
    ) -> list[int]:
        """Return the token ids of a rendered text.

        Raises `ApiError`: 400 if there are no tokens, 429 like `Tokenizer.run`.
        """
        (token_ids,) = await self._tokenizer.encode_all(
            [text], add_special_tokens=add_special_tokens, patient=patient
        )
        if not token_ids:
            message = (
                "The chat template renders these messages to an empty prompt. Send at least one "
                "message with text."
            )
            raise invalid(message, "messages")
        return token_ids

    async def render_text(self, conversation: Conversation, *, patient: bool = False) -> str:
        """Return the prompt's text.

        Raises `ApiError`: 400 if there is no template, the template refuses the conversation, or
        rendering takes too long; 429 if too many long conversations already wait, unless `patient`.
        """
        source = self._choose(conversation)
        num_bytes = conversation.num_bytes
        is_short = num_bytes is not None and num_bytes <= MAX_INLINE_CHARACTERS
        if is_short and conversation.template is None:
            return self._render(source, conversation)
        try:
            return await self._threads.run(
                lambda: self._render(source, conversation), RENDER_TIMEOUT_S, patient=patient
            )
        except TimeoutError:
            message = (
                f"The chat template took longer than {RENDER_TIMEOUT_S:g} s: send a shorter "
                "conversation."
            )
            raise invalid(message, "messages", "chat_template_timeout") from None

    def after_answer(self) -> Iterator[str]:
        """Yield what the template writes after an answer: at the end, then before a next message.

        Nothing is yielded for a conversation that the template does not accept.
        """
        source = self._own.get("default", "")
        user, answer = _USER | {"content": _PROBE}, {"role": "assistant", "content": _ANSWER}
        for messages in ([user, answer], [user, answer, user]) if source else ():
            with suppress(ApiError):
                text = self._render(source, Conversation(messages, add_generation_prompt=False))
                _, is_shown, after = text.rpartition(_ANSWER)
                if is_shown:
                    yield after

    def takes_tools(self, template: str | None) -> bool:
        """Return whether the template uses tools: the request's if trusted, else the model's."""
        source = template if template is not None and self._trust_requests else self.source
        return re.search(r"\btools\b", source) is not None

    def _choose(self, conversation: Conversation) -> str:
        if conversation.template is not None:
            if not self._trust_requests:
                message = (
                    "'chat_template' is not accepted: this server renders with the model's own "
                    "template (it was started without --trust-request-chat-template)."
                )
                raise invalid(message, "chat_template", "unsupported_parameter")
            return conversation.template
        source = self.source if conversation.tools else self._own.get("default")
        if not source:
            message = (
                "This model has no chat template, so it cannot chat; /v1/completions works. A "
                "template can be given to the server with --chat-template."
            )
            raise invalid(message, "messages", "no_chat_template")
        return source

    def _render(self, source: str, conversation: Conversation) -> str:
        """Return the prompt's text; this may run in any thread."""
        traits = self._traits(source)
        called = _called_functions(conversation.messages)
        adapted = [_adapt(message, traits, called) for message in conversation.messages]
        try:
            text = self._apply(source, replace(conversation, messages=adapted))
        # The template comes with the model and may raise any exception.
        except Exception as error:
            raise _refusal(error, "messages") from error
        if len(text) > MAX_RENDERED_CHARACTERS:
            message = (
                f"The chat template renders these messages as {len(text)} characters, and at most "
                f"{MAX_RENDERED_CHARACTERS} are accepted. Shorten the conversation."
            )
            raise invalid(message, "messages", "context_length_exceeded")
        return text

    def _apply(self, source: str, conversation: Conversation) -> str:
        return self._tokenizer.render_chat(
            conversation.messages,
            chat_template=source,
            tools=conversation.tools,
            documents=conversation.documents,
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            **conversation.variables,
        )

    def _find_traits(self, source: str) -> Traits:
        string, part = {"content": _PROBE}, {"content": [{"type": "text", "text": _PROBE}]}
        parts = self._shows(source, _USER | part)
        strings = self._shows(source, _USER | string) or not parts
        user = _USER | (string if strings else part)

        def takes(arguments: dict[str, str] | str, call_id: str) -> bool:
            return self._shows(source, user, _calling(arguments, call_id))

        as_object, as_text = {"text": _PROBE}, _PROBE
        any_id = takes(as_object, "call_1") or takes(as_text, "call_1")
        short_ids = not any_id and (takes(as_object, "abcdefghi") or takes(as_text, "abcdefghi"))
        call_id = "abcdefghi" if short_ids else "call_1"
        return Traits(
            strings=strings,
            parts=parts,
            # Arguments are passed as an object unless only a string works.
            objects=takes(as_object, call_id) or not takes(as_text, call_id),
            developer="developer" in source,
            short_ids=short_ids,
        )

    def _shows(self, source: str, *messages: Message) -> bool:
        """Return whether the prompt shows the last message, and not as a printed Python list."""
        try:
            before = self._apply(source, Conversation(messages[:-1])) if messages[1:] else ""
            text = self._apply(source, Conversation(messages))
        except Exception:  # as above: the template does not accept such messages
            return False
        is_printed = "'type'" in text or '"type": "text"' in text
        return text.count(_PROBE) > before.count(_PROBE) and not is_printed


def continued(prompt: str, conversation: Conversation) -> str:
    """Return the final message's part of `prompt`; empty if the answer begins a new message.

    The text is taken from the prompt, not from the request, because the answer continues the
    prompt, and templates trim contents and join content parts in different ways.
    """
    if not conversation.continue_final_message:
        return ""
    content = conversation.messages[-1].get("content") or ""
    parts = [content] if isinstance(content, str) else [part["text"] for part in content]
    at, indent = len(prompt), ""
    for part in reversed(parts):
        begin = prompt.rfind(part.strip(), 0, at)
        if begin < 0:  # the template omits it
            break
        at, indent = begin, part[: len(part) - len(part.lstrip())]
    return prompt[at - len(indent) if prompt.endswith(indent, 0, at) else at :]


def chat_template_of(config: ChatConfig, tokenizer: Tokenizer) -> ChatTemplate:
    """Build the chat template of the settings. Raises `ChatTemplateError` with one line."""
    source = None
    if config.chat_template is not None:
        source = _read(config.chat_template, tokenizer)
    return ChatTemplate(tokenizer, source, trust_requests=config.trust_request_chat_template)


def _read(file: Path, tokenizer: Tokenizer) -> str:
    try:
        source = file.read_text(encoding="utf-8")
        _compile(source, tokenizer)
    except (OSError, UnicodeDecodeError, TemplateSyntaxError) as error:
        reason = " ".join(str(error).split())
        raise ChatTemplateError(f"cannot use the chat template {file}: {reason}") from error
    return source


def _compile(source: str, tokenizer: Tokenizer) -> None:
    """Raise `TemplateSyntaxError` for invalid syntax; ignore errors that the message may cause."""
    try:
        tokenizer.render_chat([{"role": "user", "content": _PROBE}], chat_template=source)
    except TemplateSyntaxError:
        raise
    except Exception:
        logger.debug("the chat template does not accept a single user message", exc_info=True)


def _adapt(message: Message, traits: Traits, called: Mapping[str, str]) -> Message:
    """Convert a message to the shape that the template expects; the API allows other shapes."""
    adapted = {key: value for key, value in message.items() if value is not None}
    if adapted["role"] == "developer" and not traits.developer:
        adapted["role"] = "system"
    if adapted["role"] == "tool" and adapted.get("tool_call_id") in called:
        adapted.setdefault("name", called[adapted["tool_call_id"]])
    if traits.short_ids:
        _shorten_ids(adapted)
    content = adapted.get("content")
    if isinstance(content, list) and not traits.parts:
        adapted["content"] = "\n".join(part["text"] for part in content)
    elif isinstance(content, str) and not traits.strings:
        adapted["content"] = [{"type": "text", "text": content}]
    if "tool_calls" in adapted and traits.objects:
        adapted["tool_calls"] = [_with_parsed_arguments(call) for call in adapted["tool_calls"]]
    return adapted


def _shorten_ids(message: Message) -> None:
    """Replace identifiers of calls by nine letters and digits, as Mistral's templates demand."""
    if "tool_call_id" in message:
        message["tool_call_id"] = _short_id(message["tool_call_id"])
    if "tool_calls" in message:
        message["tool_calls"] = [
            call | {"id": _short_id(call["id"])} for call in message["tool_calls"]
        ]


def _short_id(call_id: str) -> str:
    if len(call_id) == SHORT_ID and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:SHORT_ID]


def _called_functions(messages: Sequence[Message]) -> dict[str, str]:
    """Return the functions' names by call id; some templates show them with the results."""
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return {call["id"]: call["function"]["name"] for call in calls}


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Return the call with its arguments as an object, or unchanged if they are not JSON."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = function["arguments"]
    return call | {"function": function | {"arguments": arguments}}


def _calling(arguments: dict[str, str] | str, call_id: str) -> Message:
    function = {"name": "function", "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _refusal(error: Exception, param: str) -> ApiError:
    reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS].rstrip(".")
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    message = f"The chat template does not accept this conversation: {reason}."
    return invalid(message, param, "chat_template_refusal")

"""Call formats: how each family of models writes tool calls."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.chat.call_object import CallObject
from server.chat.named_call import CALL_ID, NamedCall
from server.chat.xml_call import XmlCall
from server.grammar import call_grammar
from server.grammar.call_grammar import CallTexts, Tools
from server.grammar.grammar_text import Schema

Schemas = Mapping[str, Schema]


class CallReader(Protocol):
    """Parses one call character by character, from behind its begin marker.

    The call `is_done` at its end, and `is_broken` at the first character that rules out a call. It
    `is_call` as soon as its name is known and its arguments have begun.
    """

    name: str
    is_done: bool
    is_broken: bool

    @property
    def is_call(self) -> bool:
        """Whether it is certain to be a call."""

    def push(self, text: str) -> int:
        """Parse `text`, and return how many of its characters belong to the call."""

    def take_arguments(self) -> str:
        """Return the JSON of the arguments since the last `take_arguments`."""


@dataclass(frozen=True)
class CallFormat:
    """How a family of models writes calls: each begins with the marker `begin`, and may have `end`.

    With `bare`, a JSON object may also be a call without markers at the start of the text. With
    `continues`, JSON objects after a call are calls too; the characters of `separators` may stand
    between them. Identifiers of calls have `id_length` characters after `id_prefix`.
    """

    begin: str
    end: str = ""
    bare: bool = False
    continues: bool = False
    separators: str = ""
    id_prefix: str = "call_"
    id_length: int = 24

    @property
    def markers(self) -> set[str]:
        """The texts to search for, which may be special tokens."""
        return {self.begin, self.end} - {""}

    def reader(self, schemas: Schemas, only_names: Collection[str] | None) -> CallReader:  # noqa: ARG002
        """Return the reader of a call behind a marker, or of a bare one with `only_names`."""
        return CallObject(only_names)

    def grammar(
        self,
        tools: Sequence[tuple[str, Schema]],
        special_tokens: Mapping[str, int],
        *,
        several: bool,
        whitespace: str | None = None,
    ) -> str:
        """Return the grammar of a message that consists of calls of `tools` (names, schemas)."""
        texts, bodies = self._form(tools, whitespace)
        return call_grammar.calls(texts, bodies, special_tokens, several=several)

    def _form(self, tools: Tools, whitespace: str | None) -> tuple[CallTexts, list[list[str]]]:
        """Return the texts around calls, and the rules of each tool's calls."""
        texts = CallTexts(f"{self.begin}\n", f"\n{self.end}", "\n")
        return texts, call_grammar.json_objects(tools, "arguments", whitespace)


class Llama3Format(CallFormat):
    """Llama 3.1 to 3.3: JSON objects with `parameters`, usually without a marker."""

    def _form(self, tools: Tools, whitespace: str | None) -> tuple[CallTexts, list[list[str]]]:
        texts = CallTexts("", "", f"{self.separators} ")
        return texts, call_grammar.json_objects(tools, "parameters", whitespace)


MISTRAL_ARGUMENTS = "[ARGS]"


@dataclass(frozen=True)
class MistralFormat(CallFormat):
    """Mistral: the name, `[ARGS]` and the arguments behind each `[TOOL_CALLS]`.

    Models before Mistral Small 3.2 write a list of JSON objects behind the marker; it is read too.
    The templates accept only identifiers of nine letters and digits.
    """

    id_prefix: str = ""
    id_length: int = 9

    @property
    def markers(self) -> set[str]:
        """The texts to search for, which may be special tokens."""
        return {self.begin, MISTRAL_ARGUMENTS, CALL_ID}

    def reader(self, schemas: Schemas, only_names: Collection[str] | None) -> CallReader:  # noqa: ARG002
        """Return the reader of a call behind a marker, or of a later one of the list."""
        return CallObject() if only_names is not None else NamedCall(MISTRAL_ARGUMENTS)

    def _form(self, tools: Tools, whitespace: str | None) -> tuple[CallTexts, list[list[str]]]:
        texts = CallTexts(self.begin, inner=MISTRAL_ARGUMENTS)
        return texts, call_grammar.named_objects(tools, whitespace)


class MistralListFormat(MistralFormat):
    """Mistral 7B v0.3 to Small 3.1: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`."""

    def _form(self, tools: Tools, whitespace: str | None) -> tuple[CallTexts, list[list[str]]]:
        texts = CallTexts("", "", ", ", f"{self.begin}[", "]")
        return texts, call_grammar.json_objects(tools, "arguments", whitespace)


class XmlFormat(CallFormat):
    """Qwen3-Coder: `<function=NAME>` with a `<parameter=KEY>` for each argument."""

    def reader(self, schemas: Schemas, only_names: Collection[str] | None) -> CallReader:  # noqa: ARG002
        """Return the reader of a call behind a marker."""
        return XmlCall(schemas)

    def _form(self, tools: Tools, whitespace: str | None) -> tuple[CallTexts, list[list[str]]]:
        texts = CallTexts(f"{self.begin}\n", f"\n{self.end}", "\n")
        return texts, call_grammar.xml_functions(tools, whitespace)


HERMES = CallFormat("<tool_call>", "</tool_call>")
LLAMA3_JSON = Llama3Format("<|python_tag|>", bare=True, continues=True, separators=";")
MISTRAL = MistralFormat("[TOOL_CALLS]", "]", continues=True, separators=",")
MISTRAL_LIST = MistralListFormat("[TOOL_CALLS]", "]", continues=True, separators=",")
QWEN3_XML = XmlFormat("<tool_call>", "</tool_call>")
FORMATS = {
    "hermes": HERMES,
    "llama3_json": LLAMA3_JSON,
    "mistral": MISTRAL,
    "mistral_list": MISTRAL_LIST,
    "qwen3_xml": QWEN3_XML,
}
# GLM-4.5 writes <tool_call> too, but with another XML inside.
_OTHER_XML = "<arg_key>"


def format_of(template: str) -> CallFormat | None:
    """Return the call format of a model with this chat template; None if there is no parser."""
    if HERMES.begin in template:
        if "<function=" in template:
            return QWEN3_XML
        return None if _OTHER_XML in template else HERMES
    if MISTRAL.begin in template:
        return MISTRAL if MISTRAL_ARGUMENTS in template else MISTRAL_LIST
    if LLAMA3_JSON.begin in template or "Environment: ipython" in template:
        return LLAMA3_JSON
    return None

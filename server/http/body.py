"""A request's body: JSON into a checked model, and errors that name the field at fault."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from server.http.errors import ApiError, invalid, invalid_value

# Far more than any body has by name; what is refused is told field by field.
MAX_FIELDS = 256
# Twice as deep as a schema may be. What reads a body goes down to its bottom more than once, and
# how deep the interpreter's stack lets it is another thing in each version.
MAX_DEPTH = 256
# Objects and lists are what costs: 0.7 us and 140 bytes each, a number or a text a tenth of that
# time. Brackets in texts count too, since to tell them apart would take longer than to decode them:
# 8 MiB of source text have 30,000 (Python) to 140,000 (minified JavaScript).
MAX_BRACKETS = 262_144

Item = TypeVar("Item")


@dataclass(frozen=True)
class _UpToFirstError:
    """Pydantic's own `FailFast`, but hashable, as parts of a union must be."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return {**handler(source), "fail_fast": True}


ListOf = Annotated[list[Item], _UpToFirstError()]
"""A list in a body, read up to its first wrong item. A union tries each of its kinds of lists, and
the errors of a million token ids that are no texts took twelve seconds."""


def counted_first(limit: int) -> BeforeValidator:
    """For a list or an object that may be long: counted before each of its items is looked at."""

    def count(values: object) -> object:
        if isinstance(values, list | dict) and len(values) > limit:
            kind = "list" if isinstance(values, list) else "dictionary"
            text = "{kind} should have at most {max_length} items, not {actual_length}"
            told = {"kind": kind, "max_length": limit, "actual_length": len(values)}
            raise PydanticCustomError("too_long", text, told)
        return values

    return BeforeValidator(count)


_NULL = {"type": "null"}
# What a schema says of a field beside its shape.
_BESIDE = {"title", "description", "default"}


class Body(BaseModel):
    """What a client sends: no field beyond those we know, no value of another type.

    `expected` says in words what the fields with several shapes take.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    expected: ClassVar[dict[str, str]] = {}

    def only(self, *fields: str) -> Self:
        """A copy with only these fields, for what outlives the reading of prompts, which are long.

        To ask it for another one that has no default raises `AttributeError`.
        """
        told = self.model_fields_set.intersection(fields)
        values = {field: getattr(self, field) for field in told}
        # Pydantic's plugin for mypy knows no subclass of this one.
        return type(self).model_construct(told, **values)  # type: ignore[return-value]

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """Null is the same as leaving a field out, at any depth."""
        if not isinstance(values, dict):
            return values
        if len(values) > MAX_FIELDS:
            raise invalid(f"An object in your request has more than {MAX_FIELDS} fields.")
        return {field: value for field, value in values.items() if value is not None}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """What the document says: null may stand wherever a field may be left out."""
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        fields, required = body.get("properties", {}), body.get("required", ())
        for name in fields.keys() - set(required):
            fields[name] = _or_null(fields[name])
        return schema


def _or_null(field: JsonSchemaValue) -> JsonSchemaValue:
    beside = {name: field[name] for name in _BESIDE & field.keys()}
    shape = {name: value for name, value in field.items() if name not in _BESIDE}
    shapes = shape.get("anyOf", [shape])
    takes_all = not shape or _NULL in shapes
    return field if takes_all else beside | {"anyOf": [*shapes, _NULL]}


Kind = TypeVar("Kind", bound=Body)


def parse(kind: type[Kind], body: bytes) -> Kind:
    """The request in `body`; null stands for a field's default. Raises `ApiError` (400)."""
    num_brackets = body.count(b"[") + body.count(b"{")
    if num_brackets > MAX_BRACKETS:
        raise invalid(
            f"The JSON body of your request has more than {MAX_BRACKETS} opening brackets "
            "([ and {), those in its texts included."
        )
    try:
        values = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}.") from error
    except RecursionError as error:
        raise _too_deep() from error
    if not isinstance(values, dict):
        raise invalid("The JSON body of your request must be an object.")
    # Most bodies have so few brackets that nobody need look how they are nested.
    if num_brackets > MAX_DEPTH and _is_too_deep(values):
        raise _too_deep()
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _explain(error, kind.expected) from error
    except RecursionError as error:
        raise _too_deep() from error


@contextmanager
def not_too_deep() -> Iterator[None]:
    """For work on parts of a body: raises `ApiError` (400) where the stack is too small for it."""
    try:
        yield
    except RecursionError as error:
        raise _too_deep() from error


def _is_too_deep(values: dict[str, Any]) -> bool:
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for part in inner for each in part if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _too_deep() -> ApiError:
    return invalid("The JSON body of your request is nested too deeply.")


def _explain(error: ValidationError, expected: dict[str, str]) -> ApiError:
    problems = error.errors(include_url=False, include_context=False)
    unknown = [
        str(p["loc"][-1])
        for p in problems
        if p["type"] == "extra_forbidden" and p["loc"][0] not in expected
    ]
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        message = f"Unrecognized request argument{plural} supplied: {', '.join(unknown)}"
        return invalid(message, unknown[0], "unknown_parameter")
    problem = problems[0]
    field = str(problem["loc"][0])
    path = field if field in expected else ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        message = f"Missing required parameter: '{path}'."
        return invalid(message, field, "missing_required_parameter")
    if field in expected and problem["type"] != "too_long":
        message = f"Invalid type for '{field}': expected {expected[field]}."
        return invalid(message, field, "invalid_type")
    return invalid_value(path, problem, field)

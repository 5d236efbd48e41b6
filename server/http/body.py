"""Request bodies: JSON parsed into a validated model; errors name the invalid field."""

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

# Far more than the known fields of any body. An error lists all unknown fields, hence a limit.
MAX_FIELDS = 256
# Twice the depth limit of a JSON schema. Several functions recurse through a body, and Python's
# recursion limit differs between versions.
MAX_DEPTH = 256
# Objects and lists dominate the cost: 0.7 us and 140 bytes each, a number or a string a tenth of
# that time. Brackets inside strings count too, because telling them apart would take longer than
# decoding: 8 MiB of source text have 30,000 (Python) to 140,000 (minified JavaScript).
MAX_BRACKETS = 262_144

Item = TypeVar("Item")


@dataclass(frozen=True)
class _UpToFirstError:
    """Pydantic's own `FailFast`, but hashable, which members of a union must be."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return {**handler(source), "fail_fast": True}


ListOf = Annotated[list[Item], _UpToFirstError()]
"""A list in a body, validated up to its first invalid item. A union tries each of its list types,
so without this, a million token ids are reported as a million invalid strings (in 12 s)."""


def counted_first(limit: int) -> BeforeValidator:
    """Check the size of a list or an object before its items are validated."""

    def count(values: object) -> object:
        if isinstance(values, list | dict) and len(values) > limit:
            kind = "list" if isinstance(values, list) else "dictionary"
            text = "{kind} should have at most {max_length} items, not {actual_length}"
            context = {"kind": kind, "max_length": limit, "actual_length": len(values)}
            raise PydanticCustomError("too_long", text, context)
        return values

    return BeforeValidator(count)


_NULL = {"type": "null"}
# Keys of a schema that annotate a field and do not restrict its value.
_ANNOTATIONS = {"title", "description", "default"}


class Body(BaseModel):
    """Base class of request bodies: refuses unknown fields and values of a wrong type.

    `expected` describes, for error messages, the values of fields that accept several types.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    expected: ClassVar[dict[str, str]] = {}

    def only(self, *fields: str) -> Self:
        """A copy with only these fields, so that long prompts are freed once they are tokenized.

        Reading another field that has no default raises `AttributeError`.
        """
        given = self.model_fields_set.intersection(fields)
        values = {field: getattr(self, field) for field in given}
        # Pydantic's mypy plugin does not see the subclasses of this class.
        return type(self).model_construct(given, **values)  # type: ignore[return-value]

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """Treat null like an omitted field, at any depth."""
        if not isinstance(values, dict):
            return values
        if len(values) > MAX_FIELDS:
            raise invalid(f"An object in your request has more than {MAX_FIELDS} fields.")
        return {field: value for field, value in values.items() if value is not None}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The OpenAPI schema: null is allowed wherever a field may be omitted."""
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        fields, required = body.get("properties", {}), body.get("required", ())
        for name in fields.keys() - set(required):
            fields[name] = _or_null(fields[name])
        return schema


def _or_null(field: JsonSchemaValue) -> JsonSchemaValue:
    annotations = {name: field[name] for name in _ANNOTATIONS & field.keys()}
    shape = {name: value for name, value in field.items() if name not in _ANNOTATIONS}
    shapes = shape.get("anyOf", [shape])
    takes_all = not shape or _NULL in shapes
    return field if takes_all else annotations | {"anyOf": [*shapes, _NULL]}


Kind = TypeVar("Kind", bound=Body)


def parse(kind: type[Kind], body: bytes) -> Kind:
    """Parse `body`; null selects a field's default. Raises `ApiError` (400)."""
    num_brackets = body.count(b"[") + body.count(b"{")
    if num_brackets > MAX_BRACKETS:
        raise invalid(
            f"The JSON body of your request has more than {MAX_BRACKETS} opening brackets "
            "([ and {), including those inside strings."
        )
    try:
        values = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}.") from error
    except RecursionError as error:
        raise _too_deep() from error
    if not isinstance(values, dict):
        raise invalid("The JSON body of your request must be an object.")
    # Most bodies have too few brackets to be nested too deeply, and skip this check.
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
    """Turn a `RecursionError` of work on parts of a body into `ApiError` (400)."""
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

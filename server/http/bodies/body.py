"""Request bodies: JSON parsed into a validated model; errors name the invalid field."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from server.http.bodies.field_errors import explain
from server.http.bodies.unknown_fields import IGNORED, FoundFields, UnknownFields
from server.http.errors import ApiError, invalid

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
    """Pydantic's own `FailFast`, but hashable, which members of a union must be.

    A list of integers also accepts numbers such as 16.0.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema: Any = {**handler(source), "fail_fast": True}
        if schema["items_schema"]["type"] != "int":
            return schema  # type: ignore[no-any-return]
        return core_schema.no_info_before_validator_function(_with_integers, schema)


def _with_integers(values: object) -> object:
    """Replace numbers such as 16.0 by integers; looking for them takes 15 ms per million."""
    if isinstance(values, list) and float in set(map(type, values)):
        return [_as_integer(value) for value in values]
    return values


def _as_integer(value: object) -> object:
    """JSON has no integers: 16.0 is the number 16, and some clients write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
    """Base class of request bodies and of the objects in them: refuses values of a wrong type.

    Unknown fields are ignored, and counted in the validation's context. Without a context
    (`--strict-fields`, the offline interface), and in an object that is `closed`, they are refused.
    `unsupported` has fields of other servers that would change the answer, each with a reason; they
    are refused unless their value has no effect. `expected` describes, for error messages, the
    values of fields that accept several types.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    closed: ClassVar[bool] = False
    unsupported: ClassVar[Mapping[str, str]] = {}
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
    def _known_values(cls, values: Any, info: ValidationInfo) -> Any:
        """Omit nulls, which are like omitted fields, and unknown fields; make 16.0 an integer."""
        if not isinstance(values, dict):
            return values
        if len(values) > MAX_FIELDS:
            raise invalid(f"An object in your request has more than {MAX_FIELDS} fields.")
        integers, known = _fields_of(cls)
        values = {
            field: _as_integer(value) if field in integers else value
            for field, value in values.items()
            if value is not None
        }
        unknown = values.keys() - known
        for field in sorted(unknown & cls.unsupported.keys()):
            if not _is_neutral(values[field]):
                context = {"at": (field,)}
                raise PydanticCustomError("unsupported_field", cls.unsupported[field], context)
        if isinstance(info.context, FoundFields) and not cls.closed:
            for field in unknown:
                info.context.add(cls.__name__, field)
                del values[field]
        return values

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The OpenAPI schema: null is allowed wherever a field may be omitted.

        Other fields are allowed as far as they are ignored; see `App.openapi`.
        """
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        fields, required = body.get("properties", {}), body.get("required", ())
        for name in fields.keys() - set(required):
            fields[name] = _or_null(fields[name])
        body["additionalProperties"] = not cls.closed
        return schema


def _or_null(field: JsonSchemaValue) -> JsonSchemaValue:
    annotations = {name: field[name] for name in _ANNOTATIONS & field.keys()}
    shape = {name: value for name, value in field.items() if name not in _ANNOTATIONS}
    shapes = shape.get("anyOf", [shape])
    takes_all = not shape or _NULL in shapes
    return field if takes_all else annotations | {"anyOf": [*shapes, _NULL]}


@cache
def _fields_of(kind: type[Body]) -> tuple[frozenset[str], frozenset[str]]:
    """The names of the fields that are integers, and of all fields, as bodies spell them."""
    names = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    integers = {name for name, type_ in names.items() if int in (type_, *_members(type_))}
    return frozenset(integers), frozenset(names)


def _members(type_: Any) -> Iterator[Any]:
    """The members of a union; `Annotated` members without their annotations."""
    for member in get_args(type_):
        yield get_args(member)[0] if get_args(member) else member


def _is_neutral(value: object) -> bool:
    """Whether a field with this value is like an omitted one; `{}` is a schema, for example."""
    return not value and not isinstance(value, dict)


Kind = TypeVar("Kind", bound=Body)


def decode(body: bytes) -> dict[str, Any]:
    """Decode the JSON object of a body; its values are not validated. Raises `ApiError` (400)."""
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
    return values


def parse(kind: type[Kind], body: bytes, unknown: UnknownFields = IGNORED) -> Kind:
    """Parse `body`; null selects a field's default. Raises `ApiError` (400)."""
    values = decode(body)
    found = None if unknown.strict else FoundFields()
    try:
        parsed = kind.model_validate(values, context=found)
    except ValidationError as error:
        raise explain(error, values, kind.expected) from error
    except RecursionError as error:
        raise _too_deep() from error
    if found is not None:
        unknown.ignore(found)
    return parsed


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

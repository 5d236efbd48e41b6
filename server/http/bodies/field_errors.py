"""Errors of fields: pydantic's problems with a body, told as one sentence about one field.

A problem's location also has the names of a union's members, which are not part of the body. The
path is what remains when the location is followed through the body. Where a union accepts several
types, the member that was followed furthest is the one that the client meant.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from server.http.errors import ApiError, invalid

Path = tuple[str | int, ...]

MAX_SHOWN, MAX_NAME = 40, 64  # characters of a value, and of a field that the client has named
MAX_UNKNOWN = 8  # fields in one message
_NOUNS = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}
# Problems of a value that has the right type, where pydantic does not tell the value.
_ABOUT_VALUES = {
    "literal_error",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "string_pattern_mismatch",
    "finite_number",
    "expected_type",
    "expected_value",
}
_NOT_THERE = ("missing", "extra_forbidden")
_NOTHING = object()


def explain(
    error: ValidationError, body: object, expected: Mapping[str, str], at: Path = ()
) -> ApiError:
    """400: the first problem of a body, or of the part of a body that is `at` this path.

    `expected` describes fields that accept several types.
    """
    problems = error.errors(include_url=False, include_input=False)
    unknown = [_path(body, p) for p in problems if p["type"] == "extra_forbidden"]
    if unknown:
        return _unknown([(*at, *path) for path in unknown])
    problem, alternatives = _of_one_field(body, problems)
    path = _path(body, problem)
    name, kind = shown((*at, *path)), problem["type"]
    if kind == "missing":
        message = f"Missing required parameter: '{name}'."
        return invalid(message, name, "missing_required_parameter")
    if kind == "unsupported_field":
        message = f"'{name}' is not supported here: {problem['msg']}."
        return invalid(message, name, "unsupported_parameter")
    nouns = [_NOUNS.get(each["type"]) for each in alternatives]
    given = described(_at(body, path))
    if name in expected and kind != "too_long":
        message = f"Invalid type for '{name}': expected {expected[name]}, got {given}."
        return invalid(message, name, "invalid_type")
    if all(nouns):
        wanted = _listed([noun for noun in nouns if noun])
        message = f"Invalid type for '{name}': expected {wanted}, got {given}."
        return invalid(message, name, "invalid_type")
    text = problem["msg"][0].lower() + problem["msg"][1:]
    if kind in _ABOUT_VALUES:
        text = f"{text}, got {given}"
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(f"Invalid value for '{name}': {text}.", name, code)


def shown(path: Path) -> str:
    """A path as text, such as `messages[0].content[1].type`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{_short(part)}" for part in path)
    return "".join(parts).removeprefix(".")


def described(value: object) -> str:
    """A value and its type, for a message: `"5" (a string)`."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = msgspec.json.encode(value).decode()
    if value is None or isinstance(value, bool):
        return text
    if len(text) > MAX_SHOWN:
        text = f"{text[:MAX_SHOWN]}..."
    kinds = {str: "a string", int: "an integer", float: "a number"}
    return f"{text} ({kinds[type(value)]})"


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."


def _unknown(paths: Sequence[Path]) -> ApiError:
    names = [shown(path) for path in paths]
    plural = "s" if len(names) > 1 else ""
    listed = ", ".join(names[:MAX_UNKNOWN])
    message = f"Unrecognized request argument{plural} supplied: {listed}"
    return invalid(message, names[0], "unknown_parameter")


def _of_one_field(
    body: object, problems: Sequence[ErrorDetails]
) -> tuple[ErrorDetails, list[ErrorDetails]]:
    """Return the first problem, and all problems of other members of the same union there."""
    first = problems[0]
    union = _union_of(body, first)
    if union is None:
        return first, [first]
    members = [p for p in problems if _union_of(body, p) == union]
    furthest = max(map(_order, (_path(body, p) for p in members)))
    there = [p for p in members if _order(_path(body, p)) == furthest]
    return there[0], there


def _union_of(body: object, problem: ErrorDetails) -> tuple[str | int, ...] | None:
    """Return the location of the outermost union around a problem; None without a union."""
    value = body
    for depth, part in enumerate(problem["loc"]):
        inner = _step(value, part)
        if inner is _NOTHING:
            is_field = problem["type"] in _NOT_THERE and depth == len(problem["loc"]) - 1
            return None if is_field else problem["loc"][:depth]
        value = inner
    return None


def _order(path: Path) -> tuple[tuple[bool, str | int], ...]:
    """A key by which paths that go further, and later items of a list, are greater."""
    return tuple((isinstance(part, str), part) for part in path)


def _path(body: object, problem: ErrorDetails) -> Path:
    """Return where a problem is, without the names of members of unions."""
    location, own = problem["loc"], problem.get("ctx", {}).get("at", ())
    if problem["type"] == "missing":
        return (*max(_paths(body, location[:-1]), key=len), location[-1])
    if problem["type"] == "extra_forbidden":
        paths, last = _paths(body, location[:-1]), location[-1]
        holding = (path for path in paths if _step(_at(body, path), last) is not _NOTHING)
        return (*max(holding, key=len), last)
    # A value's own field comes last, and the name of a member of a union before it.
    path = max(_paths(body, location), key=lambda p: (p[-1:] == location[-1:], len(p)))
    return (*path, *own)


def _paths(value: object, location: Path) -> Iterator[Path]:
    """Yield all paths in `value` that leave out parts of a location."""
    if not location:
        yield ()
        return
    part, rest = location[0], location[1:]
    inner = _step(value, part)
    if inner is not _NOTHING:
        yield from ((part, *path) for path in _paths(inner, rest))
    if inner is _NOTHING or isinstance(part, str):
        yield from _paths(value, rest)


def _step(value: object, part: str | int) -> object:
    if isinstance(value, dict):
        return value.get(part, _NOTHING)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return _NOTHING


def _at(value: object, path: Path) -> object:
    for part in path:
        value = _step(value, part)
    return None if value is _NOTHING else value


def _listed(words: Sequence[str]) -> str:
    """Return different words as a list: `a string, an integer or an array`."""
    *head, last = dict.fromkeys(words)
    return f"{', '.join(head)} or {last}" if head else last

"""The part: what all parts of the settings share, and the flat names that they have outside.

Inside, settings are composed: `config.scheduler.td_pipe.prefill_ahead`. Outside (flags, variables,
YAML, `LLM(...)`, journals) each has one flat name, the name of its field: `prefill_ahead`. The
mapping between the two is derived from the schema by `paths_of`, and by nothing else.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache, reduce
from operator import getitem
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, SecretStr, SerializationInfo, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails

ENV_PREFIX = "TDPIPE_"
_KEY = re.compile(r"[!-+\--~]+")


class Part(BaseModel):
    """Frozen settings and parts of them; a key that is not in the schema is an error.

    A part's title is that of its group in `tdpipe serve --help`.
    """

    # Inputs may be secrets, and an error's text may come into a log.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """The part with these settings, by their flat names, and defaults for the rest.

        Raises `ValidationError`, with the path of the setting as its location.
        """
        paths = paths_of(cls)
        unknown = [
            InitErrorDetails(type="extra_forbidden", loc=(key,), input=value)
            for key, value in settings.items()
            if key not in paths
        ]
        if unknown:
            raise ValidationError.from_exception_data(cls.__name__, unknown, hide_input=True)
        nested: dict[str, Any] = {}
        for key, value in settings.items():
            *parts, field = paths[key]
            inner = nested
            for part in parts:
                inner = inner.setdefault(part, {})
            inner[field] = value
        return cls.model_validate(nested)

    def flat(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """All settings by their flat names; in `json` mode JSON-ready and without secrets."""
        values = self.model_dump(mode=mode)
        return {key: reduce(getitem, path, values) for key, path in paths_of(type(self)).items()}

    def replaced(self, **settings: Any) -> Self:
        """A copy with other values of these flat names, which are not validated."""
        updates: dict[str, Any] = {}
        of_parts: dict[str, dict[str, Any]] = {}
        for key, value in settings.items():
            name, *rest = paths_of(type(self))[key]
            if rest:
                of_parts.setdefault(name, {})[key] = value
            else:
                updates[name] = value
        for name, inner in of_parts.items():
            updates[name] = getattr(self, name).replaced(**inner)
        return self.model_copy(update=updates)


@cache
def paths_of(part: type[Part]) -> Mapping[str, tuple[str, ...]]:
    """By flat name, the fields that lead to each setting of the part."""
    paths: dict[str, tuple[str, ...]] = {}
    for name, field in part.model_fields.items():
        inner = _part_in(field)
        found = {key: (name, *path) for key, path in paths_of(inner).items()} if inner else None
        for key, path in (found or {name: (name,)}).items():
            assert key not in paths, f"two settings are named {key}"
            paths[key] = path
    return paths


def groups_of(part: type[Part]) -> Iterator[tuple[type[Part], dict[str, FieldInfo]]]:
    """The part and those in it, in order, each with its own settings."""
    own = {name: field for name, field in part.model_fields.items() if not _part_in(field)}
    if own:
        yield part, own
    for field in part.model_fields.values():
        inner = _part_in(field)
        if inner:
            yield from groups_of(inner)


def flat_name(part: type[Part], location: tuple[str | int, ...]) -> str:
    """The setting that an error of `part` is about; empty where it is about several."""
    for name in location:
        field = part.model_fields.get(str(name))
        inner = _part_in(field) if field else None
        if inner is None:
            return str(name)
        part = inner
    return ""


def _part_in(field: FieldInfo) -> type[Part] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Part) else None


def fit_for_a_header(key: SecretStr) -> SecretStr:
    """The key as it is. Raises `ValueError` if it cannot be sent as `Authorization: Bearer KEY`."""
    if not _KEY.fullmatch(key.get_secret_value()):
        raise ValueError("a key is printable ASCII without spaces or commas, and not empty")
    return key


def shown_secret(secret: SecretStr, info: SerializationInfo) -> str:
    """Starred out, unless the context of the serialisation says `secrets`."""
    shown = bool(info.context and info.context.get("secrets"))
    return secret.get_secret_value() if shown else str(secret)


def split_commas(value: object) -> object:
    """A list as one types it: `a,b` is the same as `[a, b]`; for validators before the type's."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if isinstance(value, list):  # a flag that was given several times
        return [part for each in value for part in _as_list(split_commas(each))]
    return value


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]

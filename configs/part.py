"""The part: what all parts of the settings share."""

from pydantic import BaseModel, ConfigDict

ENV_PREFIX = "TDPIPE_"


class Part(BaseModel):
    """Frozen, and a key that is not in the schema is an error."""

    # Inputs may be secrets, and an error's text may come into a log.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


def split_commas(value: object) -> object:
    """A list as one types it: `a,b` is the same as `[a, b]`; for validators before the type's."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if isinstance(value, list):  # a flag that was given several times
        return [part for each in value for part in _as_list(split_commas(each))]
    return value


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]

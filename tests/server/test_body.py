"""Bodies: what the document says of null is what is done with it."""

from typing import Any

import pytest
from pydantic import BaseModel, Field

from server.body import Body, parse
from server.errors import ApiError


class Inner(Body):
    size: int = 1


class Order(Body):
    name: str
    count: int = Field(1, description="how many")
    inner: Inner = Inner()
    free: Any = None


class Answer(BaseModel):
    order: Order


def takes_null(field: dict[str, Any]) -> bool:
    return field.keys() <= {"title", "default"} or {"type": "null"} in field.get("anyOf", ())


def test_null_is_the_default_of_all_but_required_fields() -> None:
    assert parse(Order, b'{"name": "a", "count": null, "inner": null}') == Order(name="a")
    with pytest.raises(ApiError, match="Missing required parameter: 'name'"):
        parse(Order, b'{"name": null}')


def test_the_document_allows_null_where_it_is_taken() -> None:
    fields = Order.model_json_schema()["properties"]
    assert {name for name in fields if takes_null(fields[name])} == {"count", "inner", "free"}
    assert fields["count"]["description"] == "how many"


def test_so_it_does_within_another_model() -> None:
    models = Answer.model_json_schema()["$defs"]
    assert takes_null(models["Inner"]["properties"]["size"])
    assert takes_null(models["Order"]["properties"]["count"])

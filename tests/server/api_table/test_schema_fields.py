"""The fields of a schema: every path once, through references, unions and arrays."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from server.api_table.schema_fields import SchemaField, fields_of


class Leaf(BaseModel):
    kind: Literal["leaf"]
    size: int = Field(0, description="in cm")


class Fruit(BaseModel):
    kind: Literal["fruit"]
    names: list[str] = []


class Tree(BaseModel):
    leaf: Leaf | None = None
    parts: list[Leaf | Fruit] = Field([], description="all of it")
    tagged: Annotated[Leaf | Fruit, Field(discriminator="kind")]
    colour: Literal["green", "red"] | None = Field(None, alias="color")
    free: dict[str, int] = {}


FIELDS = {field.path: field for field in fields_of(Tree)}


def test_nested_fields_have_their_path() -> None:
    assert list(FIELDS) == [
        *("leaf", "leaf.kind", "leaf.size"),
        *("parts", "parts[].kind", "parts[].size", "parts[].names"),
        *("tagged", "tagged.kind", "tagged.size", "tagged.names"),
        *("color", "free"),
    ]


def test_description_and_values_are_those_of_the_field() -> None:
    assert FIELDS["leaf.size"] == SchemaField("leaf.size", "in cm", ())
    assert FIELDS["color"].values == ("green", "red")
    assert FIELDS["parts"] == SchemaField("parts", "all of it", ())


def test_a_field_of_several_shapes_has_the_values_of_all() -> None:
    assert FIELDS["parts[].kind"].values == ("leaf", "fruit")

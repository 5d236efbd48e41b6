"""Parts: frozen and closed, and one flat name for each setting in them."""

import pytest
from pydantic import Field, ValidationError

from configs.config import Config, EngineConfig
from configs.schema.part import Part, flat_name, groups_of, paths_of

PARTS = [part for part, _ in groups_of(Config)]


class Inner(Part):
    """A part of a part."""

    depth: int = 1
    width: int = Field(2, ge=0)


class Outer(Part):
    """A part with a setting of its own."""

    colour: str = "red"
    inner: Inner = Field(default_factory=Inner)


class Twice(Part):
    """Two parts with one name for two settings."""

    left: Inner = Field(default_factory=Inner)
    right: Inner = Field(default_factory=Inner)


@pytest.mark.parametrize("part", [*PARTS, EngineConfig, Config])
def test_a_setting_cannot_be_changed_later(part: type[Part]) -> None:
    config = part()
    for key, value in config:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, key, value)


@pytest.mark.parametrize("part", [*PARTS, EngineConfig, Config])
def test_a_part_takes_no_key_that_it_does_not_know(part: type[Part]) -> None:
    with pytest.raises(ValidationError, match="colour"):
        part.model_validate({"colour": "red"})
    with pytest.raises(ValidationError, match="colour"):
        part.of(colour="red")


def test_settings_are_given_by_flat_names_and_found_in_their_part() -> None:
    outer = Outer.of(width=3)
    assert (outer.inner.width, outer.inner.depth, outer.colour) == (3, 1, "red")
    assert outer.flat() == {"colour": "red", "depth": 1, "width": 3}
    assert Outer.of(**outer.flat()) == outer


def test_a_copy_differs_in_what_is_replaced() -> None:
    outer = Outer.of(width=3)
    assert outer.replaced(colour="blue", depth=4).flat() == {
        "colour": "blue",
        "depth": 4,
        "width": 3,
    }
    assert outer.flat() == {"colour": "red", "depth": 1, "width": 3}


def test_the_name_of_a_part_is_no_flat_name() -> None:
    assert set(paths_of(Outer)) == {"colour", "depth", "width"}
    with pytest.raises(ValidationError, match="inner"):
        Outer.of(inner=Inner())


def test_an_error_is_about_a_flat_name() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.of(width=-1)
    assert [flat_name(Outer, error["loc"]) for error in caught.value.errors()] == ["width"]
    assert flat_name(Outer, ("inner",)) == ""


def test_two_settings_of_one_name_are_refused() -> None:
    with pytest.raises(AssertionError, match="depth"):
        paths_of(Twice)


def test_no_two_parts_have_a_setting_of_the_same_name() -> None:
    keys = [key for _, fields in groups_of(Config) for key in fields]
    assert sorted(set(keys)) == sorted(keys) == sorted(paths_of(Config))


def test_the_engine_s_settings_are_the_same_parts_of_the_whole() -> None:
    config = Config.of(policy="temporal", block_size=8, port=1)
    assert config.engine == EngineConfig.of(policy="temporal", block_size=8)
    assert paths_of(EngineConfig).items() <= paths_of(Config).items()


def test_every_part_has_a_title_and_every_setting_a_description() -> None:
    assert [part for part in PARTS if not part.model_config.get("title")] == []
    fields = {key: field for _, own in groups_of(Config) for key, field in own.items()}
    assert [key for key, field in fields.items() if not field.description] == []

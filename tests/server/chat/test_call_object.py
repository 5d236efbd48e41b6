"""A call's JSON object, parsed as it arrives."""

import pytest

from server.chat.call_object import CallObject


def test_it_ends_with_its_last_bracket() -> None:
    read = CallObject()
    assert read.push('{"name": "add", "arguments": {}} and on') == len(
        '{"name": "add", "arguments": {}}'
    )
    assert read.is_done
    assert (read.name, read.take_arguments()) == ("add", "{}")


def test_it_is_a_call_once_its_name_is_known_and_its_arguments_have_begun() -> None:
    read = CallObject()
    read.push('{"arguments": {"a": 1')
    assert not read.is_call
    read.push('}, "name": "add"')
    assert read.is_call
    assert read.take_arguments() == '{"a": 1}'
    assert read.take_arguments() == ""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x", 0),
        ('{"name" "add"}', len('{"name" ')),
        ('{"name": "add" "x"}', len('{"name": "add" ')),
        ('{"name": "add", "arguments": {a}}', None),
        ('{"name": "add", "arguments": {<}}', len('{"name": "add", "arguments": {')),
    ],
)
def test_it_breaks_at_the_first_invalid_character(text: str, count: int | None) -> None:
    read = CallObject()
    assert read.push(text) == (len(text) if count is None else count)
    assert read.is_broken == (count is not None)


@pytest.mark.parametrize("text", ['{"name": "sub"', '{"answer"'])
def test_an_object_that_names_no_known_tool_is_broken_at_once(text: str) -> None:
    read = CallObject(only_names=["add"])
    read.push(text)
    assert read.is_broken


def test_brackets_and_quotes_in_strings_do_not_count() -> None:
    read = CallObject()
    arguments = r'{"a": "}\"]\\", "b": ["{"]}'
    read.push(f'{{"name": "add", "arguments": {arguments}}}')
    assert read.is_done
    assert read.take_arguments() == arguments

"""Guides: masks against a twin that checks every token's bytes."""

import json
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLExecutor, LLMatcher
from tokenizers import Tokenizer as Core

from tests.workers.vocabularies import (
    KINDS,
    bytes_of,
    core_of,
    end_of,
    ids_in,
    vocabulary_of,
)
from workers.sampling.guide import Guide, compile_grammar, first_mask, next_masks, only_stops
from workers.sampling.vocabulary import Vocabulary, make

EXECUTOR = LLExecutor(1)


def choice(*texts: str) -> str:
    """A grammar of these texts."""
    return LLMatcher.grammar_from_lark(
        "start: TEXT\nTEXT: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    )


def begun(
    kind: str, grammar: str, stop_token_ids: tuple[int, ...], output: Sequence[int] = ()
) -> tuple[Guide, set[int]]:
    """A guide, and the tokens that it allows first."""
    vocabulary = vocabulary_of(kind)
    guide = Guide(stop_token_ids)
    mask = first_mask(guide, compile_grammar(grammar, vocabulary), output, vocabulary)
    return guide, ids_in(mask[0])


def after(kind: str, guide: Guide, token_id: int) -> set[int]:
    """The tokens that the guide allows after one more token."""
    return ids_in(next_masks([guide], [token_id], vocabulary_of(kind), EXECUTOR)[0])


def _begins(token: bytes, texts: list[bytes]) -> bool:
    return any(text.startswith(token) for text in texts)


texts = st.text(st.sampled_from('ab hello{}[]":,\n12€é世'), max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(choices=st.lists(texts, min_size=1, max_size=4), pick=st.randoms(use_true_random=False))
def test_a_mask_allows_just_the_tokens_that_lead_to_a_choice(
    kind: str, choices: list[str], pick: object
) -> None:
    wanted, tokens, end = [c.encode() for c in choices], bytes_of(kind), end_of(kind)
    guide, allowed = begun(kind, choice(*choices), (end,))
    said = b""
    while True:
        left = [text[len(said) :] for text in wanted if text.startswith(said)]
        leads = {id_ for id_, token in tokens.items() if token and _begins(token, left)}
        leads |= {end} if b"" in left else set()
        # Where the next byte has no alternative, llguidance requires the tokenizer's own spelling.
        is_forced = len({text[:1] for text in left}) == 1 and b"" not in left
        assert allowed
        assert allowed <= leads if is_forced else allowed == leads
        token_id = pick.choice(sorted(allowed))  # type: ignore[attr-defined]
        if token_id == end:
            return
        said += tokens[token_id]
        allowed = after(kind, guide, token_id)


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_output_can_only_stop_with_the_sequence_s_own_stop_tokens(kind: str) -> None:
    stops = (end_of(kind), 7, 40)
    ids = core_of(kind).encode("ab", add_special_tokens=False).ids
    guide, allowed = begun(kind, choice("ab", "abc"), stops)
    for token_id in ids:
        assert not allowed & set(stops)
        allowed = after(kind, guide, token_id)
    assert allowed > set(stops)  # or c
    for _ in range(3):  # whatever it stops with, and however often, as before a minimum length
        allowed = after(kind, guide, 40)
        assert allowed == set(stops)


def test_without_the_end_token_among_the_stops_it_is_not_allowed() -> None:
    guide, _ = begun("demo", choice("1"), (5,))
    assert after("demo", guide, core_of("demo").encode("1").ids[0]) == {5}


def test_without_stop_tokens_a_complete_output_continues_with_the_end_token() -> None:
    guide, _ = begun("demo", choice("1"), ())
    allowed = after("demo", guide, core_of("demo").encode("1").ids[0])
    for _ in range(3):
        assert allowed == {end_of("demo")}
        allowed = after("demo", guide, end_of("demo"))


def test_a_stop_token_that_the_grammar_needs_is_read_as_text() -> None:
    digits = core_of("demo").encode("12").ids
    guide, allowed = begun("demo", choice("12"), (0, digits[0]))
    assert allowed == {digits[0]}
    assert after("demo", guide, digits[0]) == {digits[1]}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_are_no_tokens_are_never_allowed(kind: str) -> None:
    _, allowed = begun(kind, LLMatcher.grammar_from_lark("start: <[*]>"), (end_of(kind),))
    assert allowed == set(core_of(kind).get_vocab().values())


SCHEMA = LLMatcher.grammar_from_json_schema(
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_guide_that_is_begun_again_with_its_output_is_where_it_was(kind: str) -> None:
    text = json.dumps({"a": 12, "b": "x € y"}, ensure_ascii=False)
    ids = [*core_of(kind).encode(text, add_special_tokens=False).ids, end_of(kind)]
    guide, allowed = begun(kind, SCHEMA, (end_of(kind),))
    for done in range(len(ids) + 1):
        _, again = begun(kind, SCHEMA, (end_of(kind),), ids[:done])
        assert again == allowed
        if done < len(ids):
            assert ids[done] in allowed
            allowed = after(kind, guide, ids[done])


def test_guides_in_one_step_are_independent() -> None:
    grammars = [choice("12"), choice("34"), SCHEMA]
    pairs = [begun("demo", grammar, (0,)) for grammar in grammars]
    together = [guide for guide, _ in pairs]
    token_ids = core_of("demo").encode("13{").ids
    masks = next_masks(together, token_ids, vocabulary_of("demo"), EXECUTOR)
    for grammar, token_id, mask in zip(grammars, token_ids, masks, strict=True):
        by_itself, _ = begun("demo", grammar, (0,))
        assert ids_in(mask) == after("demo", by_itself, token_id)


def test_an_invalid_grammar_only_stops(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "tdpipe"):
        guide, allowed = begun("demo", "start: nowhere", (0, 5))
    assert allowed == {0, 5}
    assert after("demo", guide, 5) == {0, 5}
    (record,) = caplog.records
    assert "nowhere" in record.message


def test_a_token_that_was_not_allowed_stops_the_sequence_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs = [begun("demo", choice("12"), (0,)), begun("demo", choice("12"), (0,))]
    ids = core_of("demo").encode("12").ids
    with caplog.at_level(logging.ERROR, "tdpipe"):
        masks = next_masks(
            [guide for guide, _ in pairs], [ids[1], ids[0]], vocabulary_of("demo"), EXECUTOR
        )
    assert [ids_in(mask) for mask in masks] == [{0}, {ids[1]}]
    (record,) = caplog.records
    assert "12" not in record.message  # neither the grammar nor what was generated


def test_a_grammar_that_the_vocabulary_has_no_tokens_for_only_stops(
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = f"start: <[{max(core_of('demo').get_vocab().values()) + 3}]>"
    with caplog.at_level(logging.ERROR, "tdpipe"):
        guide, allowed = begun("demo", LLMatcher.grammar_from_lark(missing), (0,))
    assert allowed == {0}
    assert after("demo", guide, 0) == {0}
    assert caplog.records


def test_a_failed_guide_without_stop_tokens_allows_anything() -> None:
    assert only_stops(Guide(()), 3).tolist() == [2**32 - 1] * 3
    assert ids_in(only_stops(Guide((1, 64)), 3)) == {1, 64}


def test_masks_are_as_wide_as_the_head() -> None:
    vocabulary = vocabulary_of("demo")
    mask = first_mask(Guide((0,)), compile_grammar(SCHEMA, vocabulary), (), vocabulary)
    assert mask.shape == (1, -(-(768 + 45) // 32))
    assert mask.dtype == np.uint32


def narrow_vocabulary() -> Vocabulary:
    """A tokenizer whose end token is beyond the rows of the model."""
    core = Core.from_str(core_of("byte-level").to_str())
    core.add_special_tokens(["<|beyond|>"])
    num_rows = core.token_to_id("<|beyond|>")
    ids = core.get_vocab(with_added_tokens=True).values()
    return make(core.to_str(), ids, num_rows, num_rows)


@pytest.mark.parametrize("stop_token_ids", [(0,), ()])
def test_an_end_token_that_the_model_has_no_row_for_is_never_allowed(
    stop_token_ids: tuple[int, ...],
) -> None:
    vocabulary = narrow_vocabulary()
    (first,) = (id_ for id_, token in bytes_of("byte-level").items() if token == b"a")
    guide = Guide(stop_token_ids)
    compiled = compile_grammar(choice("a"), vocabulary)
    assert ids_in(first_mask(guide, compiled, [], vocabulary)[0]) == {first}
    allowed = ids_in(next_masks([guide], [first], vocabulary, EXECUTOR)[0])
    assert allowed == set(stop_token_ids or ids_in(vocabulary.known))
    again = next_masks([guide], [min(allowed)], vocabulary, EXECUTOR)
    assert ids_in(again[0]) == allowed


def test_a_token_of_a_grammar_that_the_model_has_no_row_for_ends_the_sequence() -> None:
    vocabulary = narrow_vocabulary()
    guide = Guide((0,))
    grammar = LLMatcher.grammar_from_lark(f'start: "a" <[{vocabulary.eos_token_id}]>')
    (first,) = (id_ for id_, token in bytes_of("byte-level").items() if token == b"a")
    masks = first_mask(guide, compile_grammar(grammar, vocabulary), [first], vocabulary)
    assert ids_in(masks[0]) == {0}

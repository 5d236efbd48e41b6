"""Outputs after prompts: the prompt's text and the output's are the text of both together."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.prompt_end import MAX_CONTEXT, MAX_HELD
from server.text.tokenizer import Tokenizer
from tests.server.text.tokenizer_kinds import KINDS, num_ids, tokenizer_of


def streamed(tokenizer: Tokenizer, prompt: list[int], output: list[int], *, skips: bool) -> str:
    after = tokenizer.prompt_end(prompt, skip_special_tokens=skips)
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skips, after=after)
    return "".join([*map(detokenizer.push, output), detokenizer.flush()])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data(), skips=st.booleans())
def test_an_output_is_what_it_adds_to_the_text_of_its_prompt(
    kind: str, data: st.DataObject, skips: bool
) -> None:
    # In Python, a special token that is shown changes the white space of the text before it.
    skips = skips or kind == "Python sentencepiece"
    tokenizer = tokenizer_of(kind)
    ids = st.integers(0, num_ids(tokenizer) - 1)
    tokens = st.lists(ids, max_size=12)
    prompt, output = data.draw(tokens), data.draw(tokens)
    whole = tokenizer.decode(prompt + output, skip_special_tokens=skips)
    before = tokenizer.decode(prompt, skip_special_tokens=skips)
    text = streamed(tokenizer, prompt, output, skips=skips)
    if whole.startswith(before):
        assert text == whole[len(before) :]
    else:
        assert whole.endswith(text)


@pytest.mark.parametrize(
    ("kind", "prompt", "output", "text"),
    [
        ("byte fallback, as Llama 2", ["▁hello"], ["▁wor", "ld"], " world"),
        ("byte fallback, as Llama 2", ["▁hello", "</s>"], ["▁wor", "ld"], " world"),
        ("byte fallback, as Llama 2", ["▁"], ["▁wor", "ld"], " world"),
        ("byte fallback, as Llama 2", [], ["▁wor", "ld"], "world"),
        ("byte fallback, as Llama 2", ["</s>"], ["▁wor", "ld"], "world"),
        ("byte fallback, as Llama 2", ["x", "<0x0A>"], ["▁wor", "ld"], " world"),
        ("byte fallback, as Llama 2", ["x", "<0x0A>"], ["<0xC3>", "<0xA9>", "x"], "éx"),
        ("byte fallback, as Llama 2", ["x", "<0x0A>", "<0xC3>"], ["<0xA9>", "x"], "éx"),
        ("byte fallback, as Llama 2", ["x", "<0xC3>"], ["x"], "x"),
        ("byte level", ["Ċ", "Ã"], ["©", "a"], "éa"),
        ("byte level", ["a", "Ã"], ["a"], "a"),
        ("metaspace always", ["x"], ["▁hello"], " hello"),
        ("metaspace always", ["</s>"], ["▁hello"], "hello"),
        ("metaspace never", [], ["▁hello"], " hello"),
        ("word pieces", ["is"], ["par", "##is", "."], " paris."),
        ("suffixes", ["is</w>"], ["par", "is</w>"], " paris"),
        ("words", ["is"], ["par"], " par"),
        ("Python bytes", ["Ã"], ["©"], "é"),
    ],
)
def test_the_first_text_of_an_output(
    kind: str, prompt: list[str], output: list[str], text: str
) -> None:
    tokenizer = tokenizer_of(kind)
    before, after = (tokenizer._tokenizer.convert_tokens_to_ids(part) for part in (prompt, output))
    assert None not in before + after
    assert streamed(tokenizer, before, after, skips=True) == text


@pytest.mark.parametrize("kind", ["byte level", "byte fallback, as Gemma", "Python bytes"])
def test_a_replacement_character_in_a_prompt_is_the_prompts(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, output = tokenizer.encode_plain("x\ufffd"), tokenizer.encode_plain("x")
    assert tokenizer.decode(prompt).endswith("\ufffd")
    assert streamed(tokenizer, prompt, output, skips=True) == "x"


def test_the_end_of_a_long_prompt_is_short() -> None:
    tokenizer = tokenizer_of("byte fallback, as Llama 2")
    for prompt in ([256] * 5000, [0xE2] * 5000, [262] * 5000, [*[0x41] * 5000, 262]):
        end = tokenizer.prompt_end(prompt)
        assert len(end.context) + len(end.held) <= MAX_CONTEXT + MAX_HELD
        assert streamed(tokenizer, prompt, [260], skips=True).strip() == "wor"


def test_a_long_run_of_byte_tokens_is_not_cut_within_a_character() -> None:
    tokenizer = tokenizer_of("byte fallback, as Llama 2")
    for shift in range(3):
        prompt, output = [0x41] * shift + [*"€".encode()] * 500, [*"€".encode(), 260]
        assert streamed(tokenizer, prompt, output, skips=True) == "€ wor"

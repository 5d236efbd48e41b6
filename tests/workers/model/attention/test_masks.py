"""Masks are read from the functions with which transformers would make them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
    or_masks,
    sliding_window_causal_mask_function,
)

from workers.model.attention import masks
from workers.model.attention.interface import NAME, UnsupportedModelError
from workers.model.attention.masks import Mask, Visible

sizes = st.integers(1, 5000)


def read(function: Any, local_size: int | None = None) -> Visible:
    """What a mask of two tokens says."""
    return Mask(function, 2, local_size, "cpu").read()


def test_a_causal_mask_shows_all_earlier_tokens() -> None:
    assert read(causal_mask_function) == Visible()


@given(sizes)
def test_a_window_is_found_however_long_it_is(size: int) -> None:
    assert read(sliding_window_causal_mask_function(size), size) == Visible(size)


@given(sizes.filter(lambda size: size > 1))
def test_a_chunk_is_found_however_long_it_is(size: int) -> None:
    function = chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64))
    assert read(function, size) == Visible(None, size)


@given(sizes, st.integers(-3, 3).filter(bool))
def test_a_window_that_is_not_the_one_that_is_told_is_refused(size: int, more: int) -> None:
    if size + more < 1:
        return
    with pytest.raises(UnsupportedModelError, match="a mask of its own"):
        read(sliding_window_causal_mask_function(size + more), size)


def see_prefix(_: Any, __: Any, q: Any, k: Any) -> Any:  # noqa: ARG001
    return k < 4


@pytest.mark.parametrize(
    "function", [bidirectional_mask_function, or_masks(causal_mask_function, see_prefix)]
)
def test_a_mask_that_shows_later_tokens_is_refused(function: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="a mask of its own"):
        read(function)


def test_of_a_mask_that_depends_on_the_tokens_those_of_the_prompt_count() -> None:
    images = torch.tensor([[-1, -1]])

    def same_image(b: Any, _: Any, q: Any, k: Any) -> Any:
        return (images[b, q] == images[b, k]) & (images[b, q] >= 0)

    assert read(or_masks(causal_mask_function, same_image)) == Visible()
    assert read(or_masks(sliding_window_causal_mask_function(9), same_image), 9) == Visible(9)


@given(st.integers(1, 40), st.integers(0, 99), st.integers(0, 99))
def test_what_is_visible_is_what_transformers_shows(size: int, q: int, k: int) -> None:
    at = torch.tensor(q), torch.tensor(k)
    none = torch.tensor(0)
    window = sliding_window_causal_mask_function(size)
    chunk = chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64))
    assert bool(Visible(size).at(*at)) == bool(window(none, none, *at))
    assert bool(Visible(None, size).at(*at)) == bool(chunk(none, none, *at))


def small_llama() -> PreTrainedModel:
    """A model with a window and chunks, as a stage loads it."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        sliding_window=5,
        attention_chunk_size=5,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=NAME)


@pytest.mark.parametrize(
    ("create", "wanted"),
    [
        (create_causal_mask, Visible()),
        (create_sliding_window_causal_mask, Visible(5)),
        (create_chunked_causal_mask, Visible(None, 5)),
    ],
)
def test_a_model_gets_a_mask_only_while_its_masks_are_read(
    create: Callable[..., Any], wanted: Visible
) -> None:
    def mask_of(model: PreTrainedModel) -> Any:
        return create(
            config=model.config,
            inputs_embeds=torch.zeros(1, 2, 8),
            attention_mask=None,
            past_key_values=None,
            position_ids=torch.arange(2)[None],
        )

    one, other = small_llama(), small_llama()
    with masks.are_read(one):
        assert mask_of(one).read() == wanted
        assert mask_of(other) is None
        with masks.are_read(other):  # as another thread may do
            assert mask_of(other).read() == wanted
        assert mask_of(other) is None
        assert mask_of(one).read() == wanted
    assert mask_of(one) is None


@pytest.mark.parametrize("use", [lambda mask: mask[:, :2], lambda mask: mask.dtype])
def test_a_model_that_computes_with_its_mask_is_refused(use: Callable[[Any], Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="computes with its attention mask"):
        use(Mask(causal_mask_function, 2, None, "cpu"))

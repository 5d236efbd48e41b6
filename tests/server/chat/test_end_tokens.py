"""End tokens: the union of all places that name them, the template's end of a turn among them."""

import logging
from pathlib import Path

import pytest

from server.chat.chat_template import ChatTemplate
from server.chat.end_tokens import end_of_turn, find_end_tokens
from server.text.tokenizer import Tokenizer
from tests.server.openai.chatting import post, submitted
from tests.server.templates import CHATML, LLAMA3, PARTS_ONLY, QWEN, chatty
from tests.server.world import END, byte_level_tokenizer, saying, serving

TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
# How families end an answer, in our own words.
ENDINGS = {
    "chatml": (CHATML, "<|im_end|>"),
    "qwen": (QWEN, "<|im_end|>"),
    "llama 3": (LLAMA3, "<|eot_id|>"),
    "parts only": (PARTS_ONLY.replace("}}|", "}}<|eot|>"), "<|eot|>"),
    "gemma": (
        "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}"
        "<end_of_turn>\n{% endfor %}",
        "<end_of_turn>",
    ),
    "llama 2, with a space before": (
        "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
        "</s>",
    ),
    "the eos token, by its variable": (
        TURN + "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}",
        END,
    ),
    "glm: only the next turn ends it": (TURN + "{% endfor %}", "<|user|>"),
    "the last message is left open": (
        TURN + "{% if not loop.last %}<|end_of_turn|>\n{% endif %}{% endfor %}",
        "<|end_of_turn|>",
    ),
    "gpt-oss: another token before a next message": (
        TURN + "{% if loop.last %}<|return|>{% else %}<|endofmessage|>{% endif %}{% endfor %}",
        "<|return|>",
    ),
    "cohere: two in a row": (
        TURN + "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>{% endfor %}",
        "<|END_RESPONSE|>",
    ),
    "one token begins like another": (TURN + "<|end|>x{% endfor %}", "<|end|>x"),
    "text": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}", None),
    "text before a token": (TURN + "\n###<|user|>{% endfor %}", None),
    "no answer is shown": ("{{ messages[0].content }}<|user|>", None),
    "no answer is accepted": ("{{ raise_exception('no') }}", None),
    "no template": (None, None),
}
SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|eot|>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "<|user|>", "<|assistant|>"),
    *("<|end_of_turn|>", "<|return|>", "<|endofmessage|>", "<|END_RESPONSE|>"),
    *("<|END_OF_TURN_TOKEN|>", "<|end|>x"),
)


@pytest.mark.parametrize(("template", "ending"), ENDINGS.values(), ids=ENDINGS)
def test_the_end_of_a_turn_is_found(template: str | None, ending: str | None) -> None:
    tokenizer = chatty(template, *SPECIAL)
    expected = None if ending is None else tokenizer.special_tokens[ending]
    assert end_of_turn(tokenizer, ChatTemplate(tokenizer)) == expected


def test_a_marker_that_is_not_one_token_ends_no_turn() -> None:
    tokenizer = chatty(CHATML)
    assert end_of_turn(tokenizer, ChatTemplate(tokenizer)) is None


@pytest.mark.parametrize(("template", "is_found"), [(CHATML, True), (CHATML + "x", False)])
def test_an_added_token_that_is_not_special_ends_a_turn_if_nothing_follows(
    template: str, is_found: bool
) -> None:
    wrapper = byte_level_tokenizer()
    wrapper.add_tokens(["<|im_end|>"])
    wrapper.chat_template = template
    tokenizer = Tokenizer(wrapper)
    assert (end_of_turn(tokenizer, ChatTemplate(tokenizer)) is not None) == is_found


def test_all_places_are_united_and_told(caplog: pytest.LogCaptureFixture) -> None:
    wrapper = chatty(CHATML, "<|im_end|>", "<|x|>")._tokenizer
    ids = {"generation_config.json": [283, 7, 9000], "config.json": [7]}
    tokenizer = Tokenizer(wrapper, vocab_size=300, end_token_ids=ids)
    with caplog.at_level(logging.INFO, "tdpipe"):
        assert find_end_tokens(tokenizer, ChatTemplate(tokenizer)) == (283, 7, 0, 282)
    left_out, told = (record.getMessage() for record in caplog.records)
    assert left_out == (
        "end token a token without text (9000, by generation_config.json) is left out: the model "
        "has only 300 token ids"
    )
    name = wrapper.convert_ids_to_tokens(7)
    assert told == (
        "answers end with <|x|> (283, by generation_config.json); "
        f"{name} (7, by generation_config.json, config.json); <|end|> (0, by tokenizer); "
        "<|im_end|> (282, by chat template)"
    )


def test_a_model_without_an_end_token_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    wrapper = byte_level_tokenizer()
    wrapper.eos_token = None
    tokenizer = Tokenizer(wrapper)
    assert find_end_tokens(tokenizer, ChatTemplate(tokenizer)) == ()
    assert caplog.messages == [
        "the model has no end token: answers end only at their limit of tokens"
    ]


def test_the_file_of_a_template_counts_and_not_the_models() -> None:
    tokenizer = chatty(CHATML, *SPECIAL)
    template = ChatTemplate(tokenizer, LLAMA3)
    assert end_of_turn(tokenizer, template) == tokenizer.special_tokens["<|eot_id|>"]


def test_chats_and_completions_end_with_all_of_them_unless_they_are_ignored(tmp_path: Path) -> None:
    tokenizer = chatty(CHATML, "<|im_end|>")
    ends = (0, tokenizer.special_tokens["<|im_end|>"])
    with serving(tmp_path, saying("hi"), tokenizer=tokenizer) as daemon:
        short = {"truncate_prompt_tokens": 5}
        assert submitted(daemon, **short).stop_token_ids == ends
        assert submitted(daemon, **short, ignore_eos=True).stop_token_ids == ()
        assert submitted(daemon, **short, stop_token_ids=[9, 0]).stop_token_ids == (*ends, 9)
        submit = submitted(daemon, **short, min_tokens=3)
        assert (submit.stop_token_ids, submit.min_tokens) == (ends, 3)
        assert post(daemon, **short).json()["choices"][0]["finish_reason"] == "stop"

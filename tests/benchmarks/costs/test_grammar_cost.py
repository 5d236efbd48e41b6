"""The benchmark of grammars measures steps that follow them."""

import logging

import pytest
from transformers import AutoTokenizer

from benchmarks.costs.grammar_cost import NUM_ROWS, Steps, learn_tokenizer, main, time_masks
from configs.schema.model import DEMO_MODEL

DEMO = AutoTokenizer.from_pretrained(DEMO_MODEL).backend_tokenizer


def test_the_text_that_is_timed_follows_its_grammar_in_any_tokenizer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learnt = learn_tokenizer(300, iter(["the quick brown fox"] * 5))
    assert 256 < learnt.get_vocab_size() <= 300
    with caplog.at_level(logging.ERROR):
        for core in (DEMO, learnt):
            vocabulary, figures = time_masks(core)
            assert vocabulary.tokenizer.vocab_size == core.get_vocab_size()
            assert len(figures) == 5
    assert not caplog.records


@pytest.mark.parametrize("guided", [0, 1, NUM_ROWS])
def test_steps_are_timed_while_their_grammars_are_followed(
    guided: int, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary, _ = time_masks(DEMO)
    with caplog.at_level(logging.ERROR):
        sampling_s, waiting_s = Steps(vocabulary, 2, guided, 0.0).run(4)
    assert sampling_s > 0
    assert (waiting_s > 0) == (guided > 0)
    assert not caplog.records


def test_the_tables_have_a_line_for_each_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "3", "--forward-ms", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| 768 |")]) == 1 + 9

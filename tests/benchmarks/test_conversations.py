"""What counts as the same conversation."""

from pathlib import Path
from typing import cast

import torch

from benchmarks.conversations.__main__ import Row, _differences, _num_identical, _output_error
from benchmarks.conversations.reference import Answer, Message, Reference
from benchmarks.conversations.talk import NUM_TOPS, Turn
from benchmarks.conversations.texts import CONVERSATIONS
from configs.schema.model import DEMO_MODEL

MESSAGES: list[Message] = [{"role": "user", "content": "x"}]
LOGPROBS = torch.tensor([[0.5, 0.49999, 0, 0, 0, 0], [3.0, 2.0, 1.0, 0, 0, 0]]).log_softmax(-1)


class Scripted:
    """Always gives the same answer."""

    def answer(self, messages: list[Message]) -> Answer:
        """Tokens 0, 0."""
        assert messages == MESSAGES
        return Answer([7, 8], [0, 0], LOGPROBS)


SCRIPTED = cast(Reference, Scripted())


def differences(turn: Turn) -> str:
    """The differences in words."""
    return "; ".join(_differences(turn, SCRIPTED))


def test_there_are_20_conversations_of_several_turns() -> None:
    assert len(CONVERSATIONS) == len(set(CONVERSATIONS)) == 20
    assert all(len(turns) >= 2 for turns in CONVERSATIONS)


def test_another_token_is_a_difference_also_at_a_near_tie() -> None:
    assert differences(Turn(MESSAGES, [7, 8], [0, 0])) == ""
    assert "token 0" in differences(Turn(MESSAGES, [7, 8], [1, 0]))
    assert ": a near-tie (1.0e-05)" in differences(Turn(MESSAGES, [7, 8], [1, 0]))
    assert ": NO near-tie (1.0e+00)" in differences(Turn(MESSAGES, [7, 8], [0, 1]))
    assert "NO near-tie" in differences(Turn(MESSAGES, [7, 8], [0]))
    assert "another prompt" in differences(Turn(MESSAGES, [7], [0, 0]))


def test_a_row_is_exact_only_if_it_was_put_to_the_test() -> None:
    row = Row("td-pipe", 2, preemptions=3, open_at_death=5, output_error=1e-5)
    row.identical = _num_identical(row, "", [[Turn(MESSAGES, [7, 8], [0, 0])]] * 20, SCRIPTED)
    assert row.is_exact
    assert row.line() == "| td-pipe | 2 | 20 of 20 | 3 | 1.0e-05 | 0.0e+00 | 0 of 20 | 5 |"
    for field, value in (("preemptions", 0), ("open_at_death", 0), ("prompt_error", 2e-4)):
        assert not Row(**{**as_fields(row), field: value}).is_exact
    _num_identical(row, "", [[Turn(MESSAGES, [7, 8], [1, 0])]], SCRIPTED)
    assert not row.is_exact


def as_fields(row: Row) -> dict[str, object]:
    """The row's fields by name."""
    return {name: getattr(row, name) for name in Row.__slots__}


def test_the_error_of_log_probabilities_is_the_largest_one() -> None:
    tops = LOGPROBS.topk(NUM_TOPS).values.tolist()
    exact = [(float(LOGPROBS[i, 0]), tops[i]) for i in range(2)]
    assert _output_error(Turn(MESSAGES, [7, 8], [0, 0], exact), SCRIPTED) < 1e-6
    other = [exact[0], (exact[1][0] - 0.5, exact[1][1])]
    assert abs(_output_error(Turn(MESSAGES, [7, 8], [0, 0], other), SCRIPTED) - 0.5) < 1e-6
    other = [(exact[0][0], [*exact[0][1][:-1], 0.0]), exact[1]]
    assert _output_error(Turn(MESSAGES, [7, 8], [0, 0], other), SCRIPTED) > 1


def test_the_reference_keeps_answers_and_scores_them_alike() -> None:
    reference = Reference.load(Path(DEMO_MODEL), max_tokens=5)
    messages: list[Message] = [{"role": "user", "content": "12 + 7 ="}]
    answer = reference.answer(messages)
    assert reference.answer(list(messages)) is answer
    assert 0 < len(answer.token_ids) <= 5
    scored = reference.logprobs(answer.prompt_token_ids + answer.token_ids)
    own = scored[len(answer.prompt_token_ids) - 1 : -1]
    assert torch.allclose(own, answer.logprobs, atol=1e-4)
    assert own.argmax(-1).tolist() == answer.token_ids

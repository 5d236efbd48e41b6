"""Token ids that the model does not have: refused by the engine before a stage sees them."""

from array import array

import pytest

from configs.config import EngineConfig
from engine.scheduler import Scheduler
from engine.token_ids import find_unknown
from wire.messages import EngineReady, Finished, Sampling, StageReady, Step, Submit

ROWS = 100


def pack(*ids: int) -> bytes:
    return array("i", ids).tobytes()


def submit(**values: object) -> Submit:
    """A request with known tokens wherever `values` give no others."""
    known = {"prompt_token_ids": pack(0, ROWS - 1), "stop_token_ids": (0, ROWS - 1)}
    sampling = Sampling(
        bias_ids=pack(0, ROWS - 1),
        allowed_token_ids=pack(ROWS - 1),
        bad_words=(pack(1), pack(2, ROWS - 1)),
    )
    return Submit(7, max_tokens=4, **({"sampling": sampling} | known | values))  # type: ignore[arg-type]


UNKNOWN = {
    "prompt": {"prompt_token_ids": pack(1, ROWS, 2)},
    "output of a previous engine": {"output_token_ids": pack(ROWS)},
    "stop token": {"stop_token_ids": (1, ROWS)},
    "logit bias": {"sampling": Sampling(bias_ids=pack(ROWS), biases=bytes(4))},
    "allowed token": {"sampling": Sampling(allowed_token_ids=pack(1, ROWS))},
    "bad word": {"sampling": Sampling(bad_words=(pack(1), pack(2, ROWS)))},
}


def ready(*sizes: int) -> tuple[Scheduler, EngineReady]:
    """A scheduler whose stages report these numbers of token ids."""
    scheduler = Scheduler(EngineConfig.of(pipeline_parallel_size=len(sizes)))
    for stage, size in enumerate(sizes):
        answers = scheduler.handle(StageReady(stage, 1, 10, 64, vocab_size=size), 0.0)
    (message,) = answers
    assert isinstance(message, EngineReady)
    return scheduler, message


def test_all_ids_of_the_model_are_known() -> None:
    assert find_unknown(submit(), ROWS) is None


@pytest.mark.parametrize("values", UNKNOWN.values(), ids=UNKNOWN)
def test_an_id_beyond_the_embedding_is_found_wherever_it_travels(values: dict[str, object]) -> None:
    assert find_unknown(submit(**values), ROWS) == ROWS
    assert find_unknown(submit(**values), ROWS + 1) is None


def test_a_negative_id_is_unknown() -> None:
    assert find_unknown(submit(prompt_token_ids=pack(1, -1)), ROWS) == -1


@pytest.mark.parametrize("values", UNKNOWN.values(), ids=UNKNOWN)
def test_a_request_with_an_unknown_id_is_answered_and_reaches_no_stage(
    values: dict[str, object],
) -> None:
    scheduler, _ = ready(ROWS, ROWS)
    message = f"token id {ROWS} is not one of the model's {ROWS} token ids"
    assert scheduler.handle(submit(**values), 1.0) == [Finished(7, "error", message, is_final=True)]


def test_the_stage_with_the_fewest_ids_sets_their_number() -> None:
    _, message = ready(ROWS + 8, 0, ROWS)
    assert message.vocab_size == ROWS


def test_where_no_stage_reports_its_ids_none_is_refused() -> None:
    scheduler, message = ready(0, 0)
    assert message.vocab_size == 0
    (step,) = scheduler.handle(submit(prompt_token_ids=pack(10**6)), 1.0)
    assert isinstance(step, Step)

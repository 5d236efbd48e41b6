"""Settings of the scheduler: sources of predicted lengths."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.schema.scheduler import PredictorConfig


@pytest.mark.parametrize("predictor", ["constant:", "constant:0", "constant:-1", "constant:1.5"])
def test_a_constant_prediction_is_a_number_of_tokens(predictor: str) -> None:
    with pytest.raises(ValidationError, match="constant:N"):
        PredictorConfig(predictor=predictor)


def test_a_predictor_is_embedded_or_a_folder() -> None:
    assert PredictorConfig(predictor="some/folder").predictor_folder == Path("some/folder")
    assert PredictorConfig(predictor="constant:64").constant_len == 64
    for predictor in ("histogram", "oracle", "constant:64"):
        assert PredictorConfig(predictor=predictor).predictor_folder is None

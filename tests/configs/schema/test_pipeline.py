"""Settings of the pipeline: a split fits the stages."""

import pytest
from pydantic import ValidationError

from configs.schema.pipeline import PipelineConfig


@pytest.mark.parametrize("split", [(), (4,), (4, 4, 4), (8, 0), (9, -1)])
def test_a_layer_split_names_a_layer_for_each_stage(split: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="2 stages"):
        PipelineConfig(pipeline_parallel_size=2, layer_split=split)

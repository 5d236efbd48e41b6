"""The settings composed: what follows from several parts."""

import pytest
from pydantic import ValidationError

from configs.config import Config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pipeline_parallel_size": 4}, 2048),
        ({"max_num_seqs": 5}, 10),
        ({"batch_concurrency": 7}, 7),
    ],
)
def test_batches_keep_as_much_open_again_as_runs(settings: dict[str, int], expected: int) -> None:
    assert Config.of(**settings).max_open_batch_requests == expected


def test_no_error_shows_what_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        Config.of(api_key="hunter2", port="hunter2")
    assert "hunter2" not in str(caught.value)

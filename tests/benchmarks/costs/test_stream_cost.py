"""The cost of streams: every stream is complete, from a real server and engine without a model."""

import pytest

from benchmarks.costs import stream_cost
from benchmarks.scripted_stages import token_at

MODEL = "tdpipe-demo"


def test_a_thousand_streams_lose_no_token_and_a_lost_one_would_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stream_cost.serving(num_stages=2, step_ms=0) as served:
        found = stream_cost.measure(served, 1000, 8, MODEL)
        assert found.wrong == 0
        assert found.server_s > 0
        assert found.engine_s > 0
        monkeypatch.setattr(stream_cost, "token_at", lambda position: token_at(position + 1))
        assert stream_cost.measure(served, 3, 8, MODEL).wrong == 3

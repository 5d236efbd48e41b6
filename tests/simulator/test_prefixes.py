"""Workloads whose prompts have a beginning in common, and what the cache makes of them."""

import json
from typing import Any

import pytest

from simulator import command
from simulator.arrival import Arrival
from simulator.prefixes import cached_tokens
from simulator.workloads.make_workload import make_workload, with_arrivals
from simulator.workloads.request import WorkloadError

GPU = ["--gpu", "L20", "--model", "llama2-13b", "--kv-tokens", "40000", "--json"]


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert command.main([*GPU, *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_most_that_can_be_cached_is_the_longest_common_beginning() -> None:
    prompts = [(1, 2, 3, 4), (1, 2, 9, 9), (1, 2, 3, 5), (7, 7), (1, 2, 3, 4)]
    arrivals = [Arrival(0.0, len(p), 5, prompt=p) for p in prompts]
    arrivals.append(Arrival(0.0, 4 + 5 + 2, 5, prompt=(1, 2), after=0))
    assert cached_tokens(arrivals) == [3, 2, 3, 0, 3, 9]
    assert cached_tokens([Arrival(0.0, 10, 5)] * 2) == [0, 0]


def test_a_shared_prompt_has_the_same_beginning_and_random_ends() -> None:
    requests = make_workload("shared:5:40:8:3")
    assert {len(request.prompt) for request in requests} == {48}
    assert len({request.prompt[:40] for request in requests}) == 1
    assert len({request.prompt[40:] for request in requests}) == 5


def test_only_the_first_turns_of_conversations_have_arrival_times() -> None:
    requests = make_workload("chat:3:4:8:5")
    assert [request.after for request in requests] == [
        *(None, 0, 1, 2),
        *(None, 4, 5, 6),
        *(None, 8, 9, 10),
    ]
    times = [request.arrival_s or 0.0 for request in with_arrivals(requests, 1.0, 1.0, 0)]
    assert [bool(time) for time in times] == [i in (4, 8) for i in range(12)]


@pytest.mark.parametrize("policy", ["td-pipe", "temporal", "hybrid", "separate"])
@pytest.mark.parametrize(
    ("workload", "least_rate", "least_gain"),
    [("shared:80:1000:50:60", 0.9, 2.0), ("chat:20:8:60:60", 0.8, 1.0)],
)
def test_the_cache_saves_what_prompts_have_in_common(
    policy: str,
    workload: str,
    least_rate: float,
    least_gain: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--workload", workload, "--policy", policy]
    with_cache = figures(capsys, *arguments)
    without = figures(capsys, *arguments, "--no-enable-prefix-caching")
    assert with_cache["prefix_hit_rate"] > least_rate
    assert without["prefix_hit_rate"] == 0
    assert without["makespan_s"] > least_gain * with_cache["makespan_s"]
    for found in (with_cache, without):
        assert 0 < found["share_of_bound"] <= 1
    assert with_cache["bound_s"] < without["bound_s"]


def test_too_many_turns_are_refused() -> None:
    with pytest.raises(WorkloadError, match="plausible"):
        make_workload("chat:1000:1000:100:100")

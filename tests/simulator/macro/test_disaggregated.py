"""Prefill and decode on different instances."""

import pytest

from configs.config import EngineConfig
from simulator.arrival import Arrival
from simulator.macro.disaggregated import Link, simulate_disaggregated
from simulator.macro.instance import InstanceSpec
from simulator.pipeline import Node
from wire.messages import StageCosts

# A step takes a second, whatever its size; a token's KV takes 10 ms on the link.
SPEC = InstanceSpec(
    EngineConfig.of(pipeline_parallel_size=1, policy="separate", ttft_slo=5.0, tpot_slo=1.5),
    Node((StageCosts((1, 4096), (1.0, 1.0)),), 1000, 4096),
)
LINK = Link(bytes_per_s=1000.0, kv_bytes_per_token=10.0)


def arrivals(count: int, output_len: int = 3) -> list[Arrival]:
    return [Arrival(0.5, 100, output_len, offline=False) for _ in range(count)]


def test_a_prompt_takes_one_step_its_kv_the_link_and_its_answer_the_decode_instance() -> None:
    (times,) = simulate_disaggregated(SPEC, 1, 1, LINK, arrivals(1), hop_s=0.0).sequences
    assert times.first_token_at == pytest.approx(0.5 + 1.0)
    # The KV of 100 tokens takes a second, and two more tokens two steps.
    assert times.ended_at == pytest.approx(1.5 + 1.0 + 2.0)


def test_an_answer_of_one_token_needs_no_decode_instance() -> None:
    (times,) = simulate_disaggregated(SPEC, 1, 1, LINK, arrivals(1, 1), hop_s=0.0).sequences
    assert times.ended_at == times.first_token_at == pytest.approx(1.5)


def test_prompts_share_the_link_of_their_instance() -> None:
    runs = simulate_disaggregated(SPEC, 1, 1, LINK, arrivals(3), hop_s=0.0).sequences
    ends = sorted(times.ended_at for times in runs)
    # The first one has a step of its own, because the others arrive after it.
    assert [times.first_token_at for times in runs] == pytest.approx([1.5, 2.5, 2.5])
    assert ends[0] == pytest.approx(4.5)
    assert ends[2] >= 1.5 + 3.0 + 2.0  # its KV is the third on the link


def test_feeding_kv_that_has_arrived_costs_nothing_but_its_last_token() -> None:
    slow = StageCosts((1, 4096), (0.1, 409.6))
    spec = InstanceSpec(SPEC.config, Node((slow,), 1000, 4096))
    (times,) = simulate_disaggregated(spec, 1, 1, LINK, arrivals(1, 2), hop_s=0.0).sequences
    assert times.first_token_at == pytest.approx(0.5 + 10.0)
    assert times.ended_at == pytest.approx(10.5 + 1.0 + 0.1)


def test_roles_shift_to_where_the_load_is() -> None:
    """Each token takes 10 ms: prompts of 400 tokens come faster than one instance can feed them."""
    linear = StageCosts((1, 4096), (0.01, 40.96))
    spec = InstanceSpec(SPEC.config, Node((linear,), 4000, 4096))
    many = [Arrival(0.5 + 2.0 * i, 400, 4, offline=False) for i in range(40)]
    waits = []
    for shifts in (False, True):
        result = simulate_disaggregated(spec, 1, 3, Link(1e9, 10.0), many, shifts=shifts)
        assert all(times.ended_at > 0 for times in result.sequences)
        waits.append(max(times.ttft_s for times in result.sequences))
    fixed_s, shifting_s = waits
    assert fixed_s > 60.0
    assert shifting_s < 20.0

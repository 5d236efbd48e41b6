"""The production router and schedulers in one virtual time."""

import random
from dataclasses import replace

import pytest

from configs.config import EngineConfig
from configs.schema.router import RouterCoreConfig
from simulator.arrival import Arrival, Targets
from simulator.command import make_arrivals
from simulator.macro.instance import InstanceSpec
from simulator.macro.simulation import MacroRun, simulate_macro
from simulator.pipeline import Node
from simulator.simulation import simulate
from simulator.workloads.make_workload import make_workload, with_arrivals
from wire.messages import StageCosts

COSTS = StageCosts((1, 64, 512), (0.02, 0.025, 0.15), 1e-7, 0.0, 1e-8)
RULES = ("adaptive", "ecoserve", "round-robin", "least-loaded", "prefix")


def spec(policy: str = "temporal", num_stages: int = 2, num_blocks: int = 2000) -> InstanceSpec:
    config = EngineConfig.of(
        pipeline_parallel_size=num_stages, policy=policy, ttft_slo=5.0, tpot_slo=0.1
    )
    node = Node((COSTS,) * num_stages, num_blocks, 4096, overhead_s=0.0005, hop_s=0.0001)
    return InstanceSpec(config, node)


def online(workload: str, rate: float) -> list[Arrival]:
    requests = with_arrivals(make_workload(workload, seed=3), rate, 1.0, 3)
    arrivals = make_arrivals(requests, 0.3, 3)
    return [replace(a, at_s=a.at_s + 1.0 if a.after is None else a.at_s) for a in arrivals]


def run(rule: str, arrivals: list[Arrival], number: int = 3, **router: object) -> MacroRun:
    config = RouterCoreConfig.of(routing=rule, **router)
    return simulate_macro(config, [spec()] * number, arrivals, boot_s=5.0)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "ecoserve"])
def test_one_instance_behind_a_router_without_hops_is_that_instance(rule: str) -> None:
    arrivals = online("sharegpt:60", 4.0)
    alone = simulate(spec().config, spec().node, arrivals)
    config = RouterCoreConfig.of(routing=rule)
    routed = simulate_macro(config, [spec()], arrivals, hop_s=0.0)
    assert routed.sequences == alone.sequences


@pytest.mark.parametrize("rule", RULES)
def test_every_request_is_answered_and_the_run_can_be_repeated(rule: str) -> None:
    arrivals = online("sharegpt:150", 15.0)
    first, second = run(rule, arrivals), run(rule, arrivals)
    assert first.sequences == second.sequences
    assert all(
        times.ended_at >= times.first_token_at > times.arrived_at for times in first.sequences
    )
    assert not first.num_refused


def test_tokens_pass_two_hops() -> None:
    config = RouterCoreConfig.of(routing="round-robin")
    arrivals = [Arrival(1.0, 64, 5, offline=False)]
    near, far = (
        simulate_macro(config, [spec()], arrivals, hop_s=hop_s).sequences[0]
        for hop_s in (0.0, 0.25)
    )
    assert far.first_token_at - near.first_token_at == pytest.approx(0.5)
    assert far.ended_at - near.ended_at == pytest.approx(0.5)


def test_two_instances_serve_more_than_one() -> None:
    arrivals = online("fixed:200:200:50", 40.0)
    assert run("adaptive", arrivals, 2).makespan_s < 0.7 * run("adaptive", arrivals, 1).makespan_s


def test_conversations_stay_where_their_prefix_is() -> None:
    arrivals = online("chat:24:5:200:50", 8.0)
    shares = {}
    for rule in ("adaptive", "round-robin"):
        result = run(rule, arrivals)
        shares[rule] = result.hits / result.queries
    assert shares["adaptive"] > shares["round-robin"] + 0.1


def test_offline_requests_end_too_and_online_ones_come_first() -> None:
    mixed = online("fixed:40:300:40", 4.0)
    mixed += [replace(a, offline=True, at_s=1.0) for a in mixed]
    result = run("adaptive", mixed)
    waits = [times.first_token_at - times.arrived_at for times in result.sequences]
    assert all(times.ended_at > 0 for times in result.sequences)
    assert sum(waits[:40]) < sum(waits[40:])


def test_instances_are_added_while_requests_are_late_and_removed_when_it_is_calm() -> None:
    busy = online("fixed:400:400:60", 25.0)
    calm = [replace(a, at_s=60.0 + 0.5 * i) for i, a in enumerate(busy[:100])]
    result = run(
        "adaptive",
        busy + calm,
        1,
        actuator="local",
        max_instances=4,
        scale_cooldown=5.0,
        scale_window=2.0,
    )
    numbers = [number for _, number in result.num_instances]
    assert max(numbers) > 1
    assert numbers[-1] < max(numbers)
    assert all(times.ended_at > 0 for times in result.sequences)
    assert 0 < result.instance_seconds() < 4 * result.makespan_s


def test_instances_stay_while_the_others_could_not_hold_their_kv() -> None:
    """KV fills 1.2 instances in the mean, while prefill and decoding take half the time of one."""
    rng, now, arrivals = random.Random(1), 0.0, []
    while now < 200:
        now += rng.expovariate(2.6)
        arrivals.append(Arrival(now, 1500, 300, 300, offline=False))
    costs = StageCosts((1, 64, 512), (0.02, 0.021, 0.03), 1e-7, 0.0, 1e-8)
    node = Node((costs,), 1500, 4096, overhead_s=0.0005, hop_s=0.0001)
    settings = {"actuator": "local", "local_args": "a-model", "max_instances": 4}
    config = RouterCoreConfig.of(routing="adaptive", scale_cooldown=10.0, **settings)
    result = simulate_macro(
        config, [InstanceSpec(spec(num_stages=1).config, node)] * 2, arrivals, boot_s=15.0
    )
    met = sum(map(Targets(5.0, 0.1).are_met, result.sequences))
    assert met > 0.95 * len(arrivals)  # 84 % if only time counts
    assert result.instance_seconds() < 3 * result.makespan_s


def test_a_hopeless_run_ends_early() -> None:
    config = RouterCoreConfig.of(routing="round-robin")
    arrivals = online("fixed:100:300:100", 20.0)
    result = simulate_macro(config, [spec()], arrivals, is_hopeless=lambda _, now: now >= 3.0)
    assert result.makespan_s == 3.0
    assert any(times.ended_at < 0 for times in result.sequences)

"""The invariants of the scheduler, with random sequences of events."""

from collections.abc import Collection
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from configs.config import EngineConfig
from configs.schema.scheduler import SchedulerConfig
from engine.scheduler import Scheduler
from engine.trace.journal import Journal, replay
from tests.engine.world import World, make_submit
from wire.journal_file import JournalError
from wire.messages import Abort, Expect, StageCosts, Step

POLICIES = get_args(SchedulerConfig.model_fields["policy"].annotation)
ANY = {
    "pipeline_parallel_size": st.integers(1, 4),
    "block_size": st.sampled_from([1, 2, 4, 16]),
    "max_num_seqs": st.integers(1, 12),
    "max_num_batched_tokens": st.integers(1, 40),
    "async_scheduling": st.booleans(),
    "enable_prefix_caching": st.sampled_from([True, True, False]),
    "predicted_output_len": st.sampled_from([1, 5, 20, 40]),
    "max_prefill_wait": st.sampled_from([0.0, 0.05, 100.0]),
}
PART = st.floats(0.1, 1.0)
OF_POLICY = {
    "td-pipe": {
        "greedy_prefill": st.booleans(),
        "kv_occupancy": PART,
        "prefill_occupancy": PART,
        "prefill_batch_tokens": st.integers(1, 60),
        "prefill_ahead": st.integers(1, 3),
        "work_stealing": st.booleans(),
        "intensity": st.booleans(),
        "finish_ratio": PART,
        "saturating_rows": st.integers(1, 16),
        "saturated_rows": st.integers(1, 16),
    },
    "temporal": {
        "knee_tolerance": st.floats(0, 1),
        "refill_rounds": st.integers(1, 8),
        "online_steps": st.integers(1, 20),
        "topup": st.booleans(),
        "balance_time": st.booleans(),
        "lazy_refill": st.booleans(),
        "survival": st.booleans(),
        "horizon": st.sampled_from([0.0, 0.1, 2.0]),
        "forecast": st.booleans(),
        "critical_slack": st.floats(0.1, 10),
        "critical_sigmas": st.floats(0, 5),
        "longest_first": st.booleans(),
    },
    "separate": {},
    "hybrid": {
        "hybrid": st.sampled_from(["vllm", "throttled"]),
        "throttle_iterations": st.integers(1, 8),
        "throttle_min_tokens": st.integers(1, 8),
        "throttle_max_tokens": st.integers(8, 64),
        "throttle_kv_free": st.floats(0, 0.5),
    },
}
COSTS = st.one_of(
    st.just(StageCosts()),
    st.just(StageCosts((1, 4, 5, 8, 9, 40), (1.0, 1.0, 2.0, 2.0, 3.0, 12.0), 0.01)),
    # Of noisy measurements, the fit may leave nothing for small steps.
    st.just(StageCosts((1, 8, 40), (0.0, 0.0, 4.0), 0.01)),
)
TEXT = list(range(1, 29))
PROMPTS = st.one_of(
    st.lists(st.integers(1, 49), min_size=1, max_size=30),
    # Many requests begin alike.
    st.builds(
        lambda count, rest: TEXT[:count] + rest,
        st.integers(1, len(TEXT)),
        st.lists(st.integers(1, 3), max_size=2),
    ),
)
SUBMIT = st.tuples(
    st.just("submit"),
    PROMPTS,
    st.integers(1, 20),
    st.integers(0, 5),
    st.booleans(),
    st.integers(0, 30),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 2.0]),
    st.sampled_from(["", "", "salt"]),
)
ACTIONS = st.builds(
    # A burst first: KV becomes scarce only if many requests are open.
    lambda burst, rest: burst + rest,
    st.lists(SUBMIT, max_size=8),
    st.lists(
        st.one_of(
            SUBMIT,
            st.tuples(st.just("abort"), st.integers(0, 12)),
            st.tuples(st.just("expect"), st.integers(0, 12), st.integers(0, 30), st.floats(0, 5)),
            st.tuples(st.just("return"), st.integers(1, 5)),
            st.tuples(st.just("lose")),
        ),
        max_size=30,
    ),
)
SPARE_BLOCKS = st.integers(0, 12)


def configs(policy: str) -> st.SearchStrategy[EngineConfig]:
    """Any settings of the policy."""
    return st.builds(EngineConfig.of, policy=st.just(policy), **ANY, **OF_POLICY[policy])


def play(
    config: EngineConfig,
    spare_blocks: int,
    actions: list[tuple[Any, ...]],
    costs: StageCosts = StageCosts(),  # noqa: B008 - frozen
    *,
    poison: Collection[int] = (),
    names_step: bool = True,
) -> World:
    """Run the actions in order, and then until nothing is open.

    The KV cache holds the largest possible request (50 tokens) and `spare_blocks` more.
    """
    world = World(config, -(-50 // config.cache.block_size) + spare_blocks, costs)
    world.poison, world.names_step = set(poison), names_step
    for action in actions:
        match action:
            case ("submit", prompt, max_tokens, min_tokens, stop, predicted_len, offline, *others):
                spread, salt = others
                submit = make_submit(
                    len(world.submits),
                    prompt,
                    max_tokens,
                    min_tokens=min(min_tokens, max_tokens),
                    stop=stop,
                )
                prediction = {"predicted_len": predicted_len, "spread": spread}
                world.submit(replace(submit, offline=offline, cache_salt=salt, **prediction))
            case ("expect", sequence_id, predicted_len, spread):
                world.hand(Expect(sequence_id, predicted_len, spread))
            case ("abort", sequence_id):
                if sequence_id in world.submits and sequence_id not in world.finished:
                    world.abort(sequence_id)
            case ("return", count):
                for _ in range(count):
                    world.return_step()
            case ("lose",):
                world.lose_pipeline()
    world.run_dry()
    return world


@pytest.mark.parametrize("policy", POLICIES)
@given(st.data())
def test_every_request_ends_exactly_once_with_its_own_tokens(policy: str, data: Any) -> None:
    config, spare_blocks, actions, costs = data.draw(
        st.tuples(configs(policy), SPARE_BLOCKS, ACTIONS, COSTS)
    )
    play(config, spare_blocks, actions, costs).check_ends()


@pytest.mark.parametrize("policy", POLICIES)
@given(st.data())
def test_a_poison_request_is_found_and_no_other_request_loses_a_token(
    policy: str, data: Any
) -> None:
    """At its second failure if the stage reports the step, otherwise at its third."""
    config, spare_blocks, burst, costs = data.draw(
        st.tuples(configs(policy), SPARE_BLOCKS, st.lists(SUBMIT, min_size=1, max_size=12), COSTS)
    )
    poison, names_step = data.draw(st.tuples(st.integers(0, len(burst) - 1), st.booleans()))
    world = play(config, spare_blocks, burst, costs, poison={poison}, names_step=names_step)
    world.check_ends()
    assert "boom" in world.finished[poison].message
    assert [i for i, end in world.finished.items() if end.reason == "error"] == [poison]
    assert world.scheduler.counters.restarts <= (2 if names_step else 3)
    assert world.scheduler.counters.poison_requests == 1


@pytest.mark.parametrize("policy", POLICIES)
@given(st.data())
def test_no_request_starves(policy: str, data: Any) -> None:
    """Online requests start in the order of their arrival.

    Each has its first token after at most twice as many steps as it and all earlier requests have
    tokens to feed and to generate (twice because of recomputation). All work ends in that bound.
    """
    config, spare_blocks, burst, costs = data.draw(
        st.tuples(configs(policy), SPARE_BLOCKS, st.lists(SUBMIT, max_size=12), COSTS)
    )
    world = play(config, spare_blocks, burst, costs)
    steps = [m for _, _, answer in world.events for m in answer if isinstance(m, Step)]
    first_fed: dict[int, int] = {}
    sampled_by: dict[int, int] = {}
    for number, step in enumerate(steps, start=1):
        for sequence_id, samples in zip(
            memoryview(step.sequence_ids).cast("q"), step.samples, strict=True
        ):
            first_fed.setdefault(sequence_id, number)
            if samples:
                sampled_by.setdefault(sequence_id, number)
    online = [i for i, submit in world.submits.items() if not submit.offline]
    begun = [first_fed[i] for i in online]
    if policy != "separate":  # its virtual engines do not share an order
        assert begun == sorted(begun)
    sizes = [len(s.prompt_token_ids) // 4 + s.max_tokens for s in world.submits.values()]
    bounds = [2 * work for work in accumulate(sizes)]
    assert all(sampled_by[i] <= bounds[i] for i in online)
    assert len(steps) <= 2 * sum(sizes)


@pytest.mark.parametrize("policy", POLICIES)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_replay_of_a_journal_gives_identical_decisions(
    tmp_path: Path, policy: str, data: Any
) -> None:
    config, spare_blocks, actions, costs = data.draw(
        st.tuples(configs(policy), SPARE_BLOCKS, ACTIONS, COSTS)
    )
    world = play(config, spare_blocks, actions, costs)
    path = tmp_path / "journal"
    with Journal(path, config) as journal:
        for now, event, answer in world.events:
            journal.write(event, now, answer)
    assert replay(path) == len(world.events)


def test_replay_reports_the_first_decision_that_differs(tmp_path: Path) -> None:
    world = World(EngineConfig(), 8)
    world.submit(make_submit(0, [1, 2, 3], 5))
    world.run_dry()
    path = tmp_path / "journal"
    with Journal(path, EngineConfig()) as journal:
        for now, event, answer in world.events:
            journal.write(event, now, answer[:-1])
    with pytest.raises(JournalError, match=r"event 2 \(StageReady .*\): the decision differs"):
        replay(path)


def test_replay_refuses_a_file_that_is_not_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"hello there, this is text")
    with pytest.raises(JournalError, match="not a journal"):
        replay(path)


def test_a_journal_cut_short_is_replayed_up_to_the_cut(tmp_path: Path) -> None:
    world = World(EngineConfig(), 8)
    world.submit(make_submit(0, [1, 2, 3], 5))
    world.run_dry()
    path = tmp_path / "journal"
    with Journal(path, EngineConfig()) as journal:
        for now, event, answer in world.events:
            journal.write(event, now, answer)
    path.write_bytes(path.read_bytes()[:-3])
    assert replay(path) == len(world.events) - 1


def test_all_engine_processes_of_a_daemon_write_one_journal(tmp_path: Path) -> None:
    world = World(EngineConfig(), 8)
    world.submit(make_submit(0, [1, 2, 3], 5))
    world.run_dry()
    path = tmp_path / "journal"
    for append in (False, True, True):
        with Journal(path, EngineConfig(), append=append) as journal:
            for now, event, answer in world.events:
                journal.write(event, now, answer)
        path.write_bytes(path.read_bytes()[:-3])  # killed
    assert replay(path) == 3 * (len(world.events) - 1)
    with Journal(path, EngineConfig()):
        pass  # another daemon
    assert replay(path) == 0


def test_an_abort_before_the_pipeline_is_ready_is_harmless() -> None:
    assert Scheduler(EngineConfig()).handle(Abort(1), 0.0) == []

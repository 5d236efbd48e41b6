"""The policies by name: each can be constructed, and unknown names are refused."""

from typing import get_args

import pytest
from pydantic import ValidationError

from configs.config import EngineConfig
from configs.schema.scheduler import SchedulerConfig
from engine.policies.policy import Policy
from engine.policies.registry import POLICIES, make_policy
from engine.state.pool import Pool
from tests.engine.pools import ids, make_pool, make_sequence
from tests.engine.staircases import stairs
from wire.messages import Phase

BY_NAME = pytest.mark.parametrize("name", POLICIES)


def make(name: str, num_stages: int = 3) -> Policy:
    config = SchedulerConfig.of(policy=name)
    return make_policy(config, num_stages, stairs((128, 1.0), (512, 3.0)))


def waiting_pool(*num_prompt_tokens: int) -> Pool:
    """A pool with waiting prompts of these lengths."""
    pool = make_pool(num_blocks=1000)
    for i, num_tokens in enumerate(num_prompt_tokens):
        pool.add(make_sequence(i, num_tokens))
    return pool


def test_every_name_makes_a_different_policy() -> None:
    assert len({type(make(name)) for name in POLICIES}) == len(POLICIES)


@BY_NAME
@pytest.mark.parametrize("num_stages", [1, 2, 5])
def test_every_policy_has_a_micro_batch_for_each_stage(name: str, num_stages: int) -> None:
    policy = make(name, num_stages)
    assert policy.max_in_flight >= num_stages
    assert policy.phase in get_args(Phase)


@BY_NAME
def test_every_policy_begins_with_the_waiting_prompt(name: str) -> None:
    pool = waiting_pool(9)
    batch = make(name).next_micro_batch(pool, 0.0)
    assert batch is not None
    assert (ids(batch.sequences), batch.num_tokens) == ([0], [9])
    assert (batch.phase, batch.num_decodes) == ("prefill", 0)


@BY_NAME
def test_no_policy_launches_anything_if_nothing_is_open(name: str) -> None:
    assert make(name).next_micro_batch(waiting_pool(), 0.0) is None


@BY_NAME
def test_every_policy_decodes_fed_prompts(name: str) -> None:
    pool, policy = waiting_pool(9), make(name)
    prefill = policy.next_micro_batch(pool, 0.0)
    assert prefill is not None
    (sequence,) = prefill.sequences
    pool.launch([sequence], prefill.num_tokens)
    sequence.token_ids.append(1)
    pool.make_ready([sequence])
    decode = policy.next_micro_batch(pool, 1.0)
    assert decode is not None
    assert (decode.phase, ids(decode.sequences), decode.num_tokens) == ("decode", [0], [1])


@BY_NAME
def test_two_incarnations_of_the_pipeline_share_nothing(name: str) -> None:
    # The first ends with a prompt half fed, as when a stage dies.
    first, second = make(name, 1), make(name, 1)
    begun = first.next_micro_batch(waiting_pool(3000), 0.0)
    assert begun is not None
    assert begun.total_tokens < 3000
    pool = waiting_pool(9)
    batch = second.next_micro_batch(pool, 0.0)
    assert batch is not None
    assert batch.sequences == list(pool.live.values())


@pytest.mark.parametrize("part", [SchedulerConfig, EngineConfig])
@pytest.mark.parametrize("name", ["best", "", "TD-Pipe", "td_pipe"])
def test_an_unknown_name_is_refused_with_a_list_of_names(
    part: type[SchedulerConfig], name: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        part.of(policy=name)
    message = str(caught.value)
    assert "policy" in message
    assert [known for known in POLICIES if f"'{known}'" not in message] == []

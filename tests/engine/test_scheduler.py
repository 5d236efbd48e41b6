"""The scheduler: refusals, lost pipelines, and the messages that it sends."""

from array import array

import pytest
from msgspec.structs import replace

from configs.config import EngineConfig
from engine.scheduler import ImpossibleSettingsError, Scheduler
from tests.engine.world import World, expected_output, make_submit
from wire.messages import (
    EngineReady,
    Expect,
    Finished,
    Generated,
    Logprobs,
    Sampling,
    Scored,
    StageLost,
    StageReady,
    Step,
    Submit,
)


def test_a_prompt_that_cannot_fit_is_answered() -> None:
    world = World(EngineConfig.of(block_size=4), 10)
    world.submit(make_submit(0, [1] * 35, 6))
    assert world.finished[0].reason == "error"
    assert "41 tokens" in world.finished[0].message
    assert "40 tokens" in world.finished[0].message


def test_a_request_that_fills_the_whole_cache_is_served() -> None:
    world = World(EngineConfig.of(block_size=4), 10)
    world.submit(make_submit(0, [1] * 35, 5, stop=False))
    world.run_dry()
    assert len(world.outputs[0]) == 5
    world.check_ends()


@pytest.mark.parametrize(("prompt", "max_tokens"), [(b"", 1), (b"\0\0\0", 1), (b"\0\0\0\0", 0)])
def test_a_request_without_a_token_in_or_out_is_refused(prompt: bytes, max_tokens: int) -> None:
    world = World(EngineConfig(), 10)
    world.submit(Submit(0, prompt, max_tokens))
    assert world.finished[0].reason == "error"


def test_the_same_id_twice_is_refused_and_the_first_continues() -> None:
    scheduler = Scheduler(EngineConfig.of(pipeline_parallel_size=1))
    scheduler.handle(StageReady(0, 1, 10, 100), 0.0)
    scheduler.handle(make_submit(7, [1], 3), 1.0)
    (answer,) = scheduler.handle(make_submit(7, [1], 3), 2.0)
    assert isinstance(answer, Finished)
    assert "already open" in answer.message


def test_a_request_before_the_stages_are_ready_is_refused() -> None:
    answer = Scheduler(EngineConfig()).handle(make_submit(0, [1], 3), 0.0)
    assert answer == [Finished(0, "error", "the pipeline is not ready")]


def test_the_smallest_stage_sets_the_number_of_blocks() -> None:
    scheduler = Scheduler(EngineConfig.of(pipeline_parallel_size=3, block_size=16))
    answers = [
        scheduler.handle(StageReady(stage, 5, num_blocks, 4096, attention=backend), 0.0)
        for stage, num_blocks, backend in [(1, 30, "native"), (2, 20, "plain"), (0, 25, "native")]
    ]
    attention = ("native", "native", "plain")
    assert answers == [
        [],
        [],
        [EngineReady(3, 20, 16, 320, attention=attention)],
    ]


@pytest.mark.parametrize("promises", [(True, True), (True, False), (False, False)])
def test_batch_invariance_is_promised_where_all_stages_promise_it(
    promises: tuple[bool, bool],
) -> None:
    scheduler = Scheduler(EngineConfig.of(pipeline_parallel_size=2))
    for stage, promise in enumerate(promises):
        answers = scheduler.handle(StageReady(stage, 1, 10, 100, batch_invariant=promise), 0.0)
    (ready,) = answers
    assert isinstance(ready, EngineReady)
    assert ready.batch_invariant == all(promises)


def test_stages_of_two_epochs_are_not_counted_together() -> None:
    scheduler = Scheduler(EngineConfig.of(pipeline_parallel_size=2))
    assert scheduler.handle(StageReady(0, 1, 10, 100), 0.0) == []
    assert scheduler.handle(StageReady(1, 2, 10, 100), 0.0) == []
    assert scheduler.handle(StageReady(0, 2, 10, 100), 0.0) != []


def test_a_late_message_of_an_older_epoch_changes_nothing() -> None:
    world = World(EngineConfig(), 100)
    world.start_pipeline()
    world.submit(make_submit(0, [1], 5, stop=False))
    assert world.hand(StageReady(0, 1, 100, 100)) == []
    world.run_dry()
    world.check_ends()
    assert world.finished[0].reason == "length"


def test_a_lost_pipeline_loses_no_sequence_and_no_token() -> None:
    world = World(EngineConfig(), 100)
    for i in range(5):
        world.submit(make_submit(i, [1 + i], 10, stop=False))
    for _ in range(8):
        world.return_step()
    before = {i: list(output) for i, output in world.outputs.items()}
    assert any(before.values())
    world.hand(StageLost(world.epoch, "a stage died"))
    world.submit(make_submit(9, [9], 4, stop=False))  # waits with the others
    assert not world.finished
    world.start_pipeline()
    world.run_dry()
    world.check_ends()
    assert all(world.outputs[i][: len(output)] == output for i, output in before.items())
    assert len(world.outputs[9]) == 4
    assert world.scheduler.counters.restarts == 1


def test_stages_that_restart_unannounced_continue_the_old_requests() -> None:
    world = World(EngineConfig(), 100)
    world.submit(make_submit(0, [1], 10, stop=False))
    world.start_pipeline()
    world.run_dry()
    world.check_ends()
    assert world.finished[0].reason == "length"


def test_the_late_ready_of_a_lost_group_makes_no_pipeline() -> None:
    world = World(EngineConfig.of(pipeline_parallel_size=1), 100)
    world.hand(StageLost(world.epoch, "a stage died"))
    world.hand(StageReady(0, world.epoch, 100, 100))
    assert world.scheduler.pipeline is None


def test_stages_lost_before_all_were_ready_do_not_count_as_ready() -> None:
    scheduler = Scheduler(EngineConfig.of(pipeline_parallel_size=2))
    scheduler.handle(StageReady(0, 5, 10, 100), 0.0)
    scheduler.handle(StageLost(5, "stage 1 waited for a neighbour"), 0.0)
    assert scheduler.is_over(5)
    assert scheduler.handle(StageReady(1, 5, 10, 100), 0.0) == []
    scheduler.handle(StageReady(0, 6, 10, 100), 0.0)
    assert scheduler.handle(StageReady(1, 6, 10, 100), 0.0) != []


def test_an_abort_finds_its_sequence_while_there_are_no_stages() -> None:
    world = World(EngineConfig(), 100)
    world.submit(make_submit(0, [1], 10, stop=False))
    world.hand(StageLost(world.epoch, "a stage died"))
    world.abort(0)
    assert not world.scheduler.pool.open_sequences()


def test_stages_that_restart_with_less_memory_keep_the_sequences_that_fit() -> None:
    world = World(EngineConfig.of(block_size=4), 10)
    world.submit(make_submit(0, [1] * 30, 10, stop=False))
    world.submit(make_submit(1, [1] * 10, 10, stop=False))
    world.num_blocks = 6
    world.lose_pipeline()
    world.run_dry()
    world.check_ends()
    assert world.finished[0].reason == "error"
    assert "24 tokens" in world.finished[0].message
    assert world.finished[1].reason == "length"


def test_a_scored_prompt_may_fill_the_longest_sequence_also_after_a_loss() -> None:
    scored = Sampling(num_prompt_logprobs=0)
    world = World(EngineConfig.of(block_size=4), 10)
    world.submit(replace(make_submit(0, [1] * 40, 1, stop=False), sampling=scored))
    world.submit(replace(make_submit(1, [1] * 41, 1, stop=False), sampling=scored))
    world.submit(make_submit(2, [1] * 40, 1, stop=False))
    world.lose_pipeline()
    world.run_dry()
    world.check_ends()
    assert [world.finished[i].reason for i in range(3)] == ["length", "error", "error"]


def test_a_new_engine_continues_where_the_previous_one_was() -> None:
    submit = make_submit(0, [3, 4], 12, stop=False)
    whole = expected_output(submit)
    world = World(EngineConfig(), 100)
    world.submit(replace(submit, output_token_ids=array("i", whole[:5]).tobytes()))
    world.run_dry()
    assert world.outputs[0] == whole[5:]
    assert world.finished[0].reason == "length"


def test_a_sequence_completed_in_the_previous_engine_ends_at_once() -> None:
    submit = make_submit(0, [3, 4], 5, stop=False)
    output = array("i", expected_output(submit)).tobytes()
    world = World(EngineConfig(), 100)
    world.submit(replace(submit, output_token_ids=output))
    assert world.finished[0].reason == "length"
    assert world.outputs[0] == []


def test_stages_with_different_last_steps_are_restarted() -> None:
    scheduler = Scheduler(EngineConfig.of(pipeline_parallel_size=2))
    scheduler.handle(StageReady(0, 3, 10, 100, last_step_id=41), 0.0)
    (lost,) = scheduler.handle(StageReady(1, 3, 10, 100, last_step_id=40), 0.0)
    assert isinstance(lost, StageLost)
    assert lost.epoch == 3
    scheduler.handle(StageReady(0, 3, 10, 100, last_step_id=41), 0.0)
    assert scheduler.handle(StageReady(1, 3, 10, 100, last_step_id=41), 0.0) == []
    assert [scheduler.knows(0, 0, epoch) for epoch in (3, 4)] == [True, False]


def test_the_pipeline_starts_when_all_ranks_of_all_stages_are_ready() -> None:
    config = EngineConfig.of(pipeline_parallel_size=2, tensor_parallel_size=2)
    scheduler = Scheduler(config)
    blocks = {(0, 0): 10, (0, 1): 9, (1, 0): 12, (1, 1): 11}
    for (stage, rank), num_blocks in list(blocks.items())[:-1]:
        ready = StageReady(stage, 1, num_blocks, 100, attention="native", tensor_rank=rank)
        scheduler.handle(ready, 0.0)
        assert scheduler.pipeline is None
        assert scheduler.knows(stage, rank, 1)
    assert not scheduler.knows(1, 1, 1)
    last = StageReady(1, 1, 11, 100, attention="native", tensor_rank=1)
    (engine_ready,) = scheduler.handle(last, 0.0)
    assert isinstance(engine_ready, EngineReady)
    assert (engine_ready.num_stages, engine_ready.num_blocks) == (2, 9)
    assert engine_ready.attention == ("native", "native")


def test_the_steps_of_a_new_engine_have_ids_unknown_to_its_stages() -> None:
    scheduler = Scheduler(EngineConfig.of(pipeline_parallel_size=2))
    for stage in range(2):
        scheduler.handle(StageReady(stage, 1, 10, 100, last_step_id=41), 0.0)
    (step,) = scheduler.handle(make_submit(0, [1], 3), 0.0)
    assert isinstance(step, Step)
    assert step.step_id == 42


@pytest.mark.parametrize(
    ("wanted", "words"), [(200, "model's own limit of 100"), (90, "KV cache of 80 tokens")]
)
def test_a_length_that_cannot_be_served_ends_the_start(wanted: int, words: str) -> None:
    scheduler = Scheduler(
        EngineConfig.of(max_model_len=wanted, block_size=8, pipeline_parallel_size=1)
    )
    with pytest.raises(ImpossibleSettingsError, match=words):
        scheduler.handle(StageReady(0, 1, 10, 100), 0.0)


def test_the_refusal_of_a_length_says_where_the_limit_comes_from() -> None:
    scheduler = Scheduler(EngineConfig.of(max_model_len=200, pipeline_parallel_size=1))
    reason = "max_position_embeddings 50 x factor 2 of its dynamic RoPE"
    words = rf"limit of 100 tokens \({reason}\); lower max_model_len"
    with pytest.raises(ImpossibleSettingsError, match=words):
        scheduler.handle(StageReady(0, 1, 10, 100, max_model_len_reason=reason), 0.0)


def test_min_tokens_forbids_the_stop_token_until_then() -> None:
    world = World(EngineConfig(), 100)
    prompt = next([p] for p in range(50) if expected_first(p) == 0)
    world.submit(make_submit(0, prompt, 5, min_tokens=3))
    world.submit(make_submit(1, prompt, 5))
    world.run_dry()
    world.check_ends()
    assert world.outputs[1] == [0]
    assert 0 not in world.outputs[0][:2]
    assert len(world.outputs[0]) >= 3


def expected_first(prompt_token: int) -> int:
    """The first token of the fake model after a prompt of one token."""
    world = World(EngineConfig(), 100)
    world.submit(make_submit(0, [prompt_token], 1, stop=False))
    world.run_dry()
    return world.outputs[0][0]


def test_the_tokens_of_a_step_are_one_message() -> None:
    config = EngineConfig.of(policy="td-pipe", pipeline_parallel_size=1, prefill_ahead=1)
    world = World(config, 100)
    for i in range(8):
        world.submit(make_submit(i, [1 + i], 2, stop=False))
    world.return_step()
    answer = world.hand(world.stage.run(world.in_flight.popleft()))
    generated = [m for m in answer if isinstance(m, Generated)]
    assert len(generated) == 1
    assert len(generated[0].token_ids) == 7 * array("i").itemsize


def test_sampling_parameters_reach_the_stage_only_where_they_are_needed() -> None:
    scheduler = Scheduler(EngineConfig.of(pipeline_parallel_size=1))
    scheduler.handle(StageReady(0, 1, 10, 100), 0.0)
    (step,) = scheduler.handle(make_submit(0, [1], 3), 0.0)
    assert isinstance(step, Step)
    assert (step.sampler_slots, step.setups) == (b"", ())


def test_a_late_prediction_changes_the_order_of_admission() -> None:
    config = EngineConfig.of(policy="temporal", pipeline_parallel_size=1, max_num_seqs=1)
    world = World(config, 200)
    world.submit(make_submit(0, [1], 3, stop=False))  # occupies the only place
    for sequence_id in (1, 2, 3):
        submit = make_submit(sequence_id, [1], 400, stop=False)
        world.submit(replace(submit, predicted_len=10, offline=True))
    world.hand(Expect(3, 300, 0.2))
    world.hand(Expect(99, 300, 0.2))  # of no sequence
    admitted = []
    while world.return_step():
        live = list(world.scheduler.pool.live)
        admitted += [sequence_id for sequence_id in live if sequence_id not in admitted]
        if 3 in admitted:
            break
    assert admitted[-1] == 3
    assert not {1, 2} & set(admitted)


def one_logprob(index: int, top_id: int) -> Logprobs:
    """One position with one likeliest token."""
    ints, floats = (lambda n: array("i", [n]).tobytes()), array("f", [-0.5]).tobytes()
    return Logprobs(ints(index), floats, ints(1), ints(1), ints(top_id), floats)


def test_logprobs_and_scores_reach_their_sequences_unless_these_have_ended() -> None:
    world = World(EngineConfig.of(pipeline_parallel_size=1, prefill_batch_tokens=100), 100)
    asking = Sampling(temperature=0.0, num_logprobs=1, num_prompt_logprobs=1)
    for sequence_id in range(3):
        world.submit(replace(make_submit(sequence_id, [1, 2], 5, stop=False), sampling=asking))
    world.abort(1)
    while len(world.in_flight) > 1 or len(world.in_flight[0].sequence_ids) < 16:
        world.return_step()
    ids = list(memoryview(world.in_flight[0].sequence_ids).cast("q"))
    world.abort(ids[0])
    step = world.in_flight.popleft()
    done = world.stage.run(step)
    logprobs = Logprobs(
        *(array("i", range(len(ids))).tobytes(), array("f", range(len(ids))).tobytes()),
        *(array("i", [1] * len(ids)).tobytes() for _ in range(2)),
        array("i", [10 + i for i in range(len(ids))]).tobytes(),
        array("f", [0.0] * len(ids)).tobytes(),
    )
    scores = tuple(one_logprob(1, 7) for _ in step.scored)
    answer = world.hand(replace(done, logprobs=logprobs, scores=scores))
    (generated,) = (message for message in answer if isinstance(message, Generated))
    assert generated.logprobs is not None
    left = list(range(1, len(ids)))
    assert array("i", generated.logprobs.indices).tolist() == [i - 1 for i in left]
    assert array("i", generated.logprobs.top_ids).tolist() == [10 + i for i in left]
    assert array("f", generated.logprobs.chosen).tolist() == left
    scored = [message.sequence_id for message in answer if isinstance(message, Scored)]
    assert scored == [ids[row.row] for row in step.scored if ids[row.row] != ids[0]]

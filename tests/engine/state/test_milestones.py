"""Milestones: what happens to traced sequences, through the real scheduler at known times."""

from array import array

from msgspec.structs import replace

from configs.config import EngineConfig
from engine.trace.journal import Entry
from tests.engine.world import World, make_submit
from wire.journal_file import digest
from wire.messages import Milestone, Submit


def make_world(num_blocks: int = 40, **settings: object) -> World:
    """A world in which each event takes place 0.01 s after the one before it."""
    config = {"pipeline_parallel_size": 1, "block_size": 4, "policy": "hybrid", **settings}
    return World(EngineConfig.of(**config), num_blocks)


def traced(submit: Submit) -> Submit:
    return replace(submit, traced=True)


def milestones(world: World) -> list[tuple[int, str, float]]:
    """All that were sent, with their times."""
    sent = [message for _, _, answer in world.events for message in answer]
    found = [message for message in sent if isinstance(message, Milestone)]
    return [(each.sequence_id, each.kind, round(each.at, 3)) for each in found]


def test_a_sequence_is_scheduled_and_sampled_at_the_times_of_the_events() -> None:
    world = make_world()
    world.submit(traced(make_submit(1, [5, 6, 7], 3, stop=False)))
    world.now += 1.0
    world.run_dry()
    assert milestones(world) == [(1, "scheduled", 0.02), (1, "sampled", 1.03)]


def test_a_sequence_that_is_not_traced_sends_none() -> None:
    world = make_world()
    world.submit(make_submit(1, [5, 6, 7], 3, stop=False))
    world.lose_pipeline()
    world.run_dry()
    assert milestones(world) == []


def test_the_milestone_of_the_only_token_comes_before_the_end() -> None:
    world = make_world()
    world.submit(traced(make_submit(1, [5, 6, 7], 1, stop=False)))
    world.run_dry()
    kinds = [type(message).__name__ for message in world.events[-1][2]]
    assert kinds.index("Milestone") < kinds.index("Finished")


def test_a_prompt_in_chunks_is_scheduled_once() -> None:
    world = make_world(max_num_batched_tokens=2, max_num_seqs=2)
    world.submit(traced(make_submit(1, [5, 6, 7, 8, 9], 2, stop=False)))
    world.run_dry()
    assert [kind for _, kind, _ in milestones(world)] == ["scheduled", "sampled"]


def test_a_loss_of_the_stages_is_followed_by_the_recomputation() -> None:
    world = make_world()
    world.submit(traced(make_submit(1, [5, 6, 7], 4, stop=False)))
    world.return_step()
    world.now += 5.0
    world.lose_pipeline()
    world.run_dry()
    kinds = [kind for _, kind, _ in milestones(world)]
    assert kinds == ["scheduled", "sampled", "stages_lost", "scheduled", "sampled"]
    times = [at for _, _, at in milestones(world)]
    assert times[2] > 5.0


def test_a_preemption_is_followed_by_the_recomputation() -> None:
    world = make_world(num_blocks=6, max_num_seqs=2)
    for number in (1, 2):
        world.submit(traced(make_submit(number, [5 + number] * 4, 16, stop=False)))
    world.run_dry()
    assert world.scheduler.counters.preemptions > 0
    victim = next(number for number, kind, _ in milestones(world) if kind == "preempted")
    kinds = [kind for number, kind, _ in milestones(world) if number == victim]
    assert kinds == ["scheduled", "sampled", *["preempted", "scheduled", "sampled"]]


def test_an_aborted_sequence_sends_nothing_more() -> None:
    world = make_world()
    world.submit(traced(make_submit(1, [5, 6, 7], 30, stop=False)))
    world.abort(1)
    world.lose_pipeline()
    world.run_dry()
    assert [kind for _, kind, _ in milestones(world)] == ["scheduled"]


def test_a_sequence_that_another_engine_began_is_scheduled_again() -> None:
    world = make_world()
    submit = traced(make_submit(1, [5, 6, 7], 30, stop=False))
    world.submit(replace(submit, output_token_ids=array("i", [8]).tobytes()))
    world.return_step()
    assert [kind for _, kind, _ in milestones(world)] == ["scheduled", "sampled"]


def test_a_replay_gives_the_same_milestones() -> None:
    world = make_world()
    world.submit(traced(make_submit(1, [5, 6, 7], 3, stop=False)))
    world.run_dry()
    again = type(world.scheduler)(world.config)
    for now, event, answer in world.events:
        entry = Entry(now, event, digest(answer))
        assert digest(again.handle(entry.event, entry.now)) == entry.digest

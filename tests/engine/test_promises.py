"""Promises: what the scheduler says that it has promised, computed by hand for known costs."""

from array import array
from math import inf

import pytest
from msgspec.structs import replace

from configs.config import EngineConfig
from engine.promises import SHORTEST_PAUSE_S, Announcements, Promiser, quantiles
from tests.engine.world import World, make_submit
from wire.messages import Abort, Event, StageCosts, Submit
from wire.promises import Promises

# A second for each token, on top of one for each step.
COSTS = StageCosts((1, 1000), (2.0, 1001.0))
NUM_BLOCKS, BLOCK_SIZE = 40, 4


class Followed:
    """A world whose scheduler is followed, as the engine's loop does it."""

    def __init__(self, costs: StageCosts = COSTS, **settings: object) -> None:
        defaults = {"pipeline_parallel_size": 1, "block_size": BLOCK_SIZE, "policy": "td-pipe"}
        targets = {"ttft_slo": 100.0, "tpot_slo": 0.5}
        config = EngineConfig.of(**{**defaults, **targets, **settings})
        self.world = World(config, NUM_BLOCKS, costs)
        self.promiser = Promiser(self.world.scheduler)
        self.announcements = Announcements(self.world.scheduler, self.promiser)
        hand = self.world.hand

        def followed(event: Event) -> list[object]:
            answer = hand(event)
            self.announcements.follow(event, self.world.now)
            return list(answer)

        self.world.hand = followed  # type: ignore[assignment, method-assign]

    def submit(self, sequence_id: int, num_tokens: int, *, offline: bool = False) -> None:
        """A request whose answer goes on for ever."""
        submit = make_submit(sequence_id, [sequence_id] * num_tokens, 60, stop=False)
        self.world.submit(replace(submit, offline=offline))

    def promises(self) -> Promises:
        """The promises now."""
        return self.promiser.promises(self.world.now)


def test_without_requests_nothing_is_promised_and_all_kv_is_free() -> None:
    promises = Followed().promises()
    assert (promises.slot_prefill_s, promises.pending_prefill_s) == (0, 0)
    assert (promises.num_waiting, promises.num_decoding, promises.slack_s) == (0, 0, ())
    assert promises.free_kv_tokens == promises.kv_tokens == NUM_BLOCKS * BLOCK_SIZE
    assert promises.costs.seconds[:2] == (2.0, 65.0)  # of 1 and of 64 tokens


def test_while_the_stages_are_not_ready_there_are_no_promises() -> None:
    followed = Followed()
    followed.world.lose_pipeline = lambda: None  # type: ignore[method-assign]
    followed.world.scheduler.pipeline = None
    assert followed.promises() == Promises()


def test_prompts_that_have_arrived_count_until_the_prefill_slot_ends() -> None:
    followed = Followed(prefill_ahead=1)
    followed.submit(1, 10)
    followed.submit(2, 20)
    promises = followed.promises()
    assert promises.slot_prefill_s == pytest.approx(11.0 + 21.0)  # each alone
    # Of both, the second is left: the step of the first one is in flight.
    assert promises.num_waiting == 2
    assert promises.pending_prefill_s == pytest.approx(20 * promises.costs.token_s)
    while followed.promises().phase != "decode":
        assert followed.world.return_step()
    assert followed.promises().slot_prefill_s == 0.0
    assert followed.promises().num_waiting == 0


def test_slack_is_what_a_request_is_ahead_of_its_target() -> None:
    followed = Followed()
    followed.submit(1, 4)
    followed.world.return_step()
    first_token_at = followed.world.now
    for _ in range(3):
        followed.world.return_step()
    followed.world.now = first_token_at + 1.25
    promises = followed.promises()
    assert promises.num_decoding == 1
    assert promises.slack_s == pytest.approx((4 * 0.5 - 1.25,) * 7)
    assert promises.mean_slack_s == pytest.approx(0.75)


def test_requests_that_will_miss_their_target_anyway_have_no_part_in_the_projected_slack() -> None:
    followed = Followed(tpot_slo=5.0)
    for sequence_id in (1, 2):
        followed.submit(sequence_id, 4)
    while followed.promises().num_decoding < 2:
        followed.world.return_step()
    late = followed.world.scheduler.pool.live[1]
    assert late.first_token_at is not None
    both = followed.promises()
    late.first_token_at -= 1e6
    one = followed.promises()
    assert one.slack_s[0] < -1e5
    assert one.mean_slack_s < -1e5
    assert one.projected_slack_s == (both.projected_slack_s[-1],) * 7
    followed.world.scheduler.pool.live[2].first_token_at = late.first_token_at
    assert followed.promises().projected_slack_s == ()


def test_another_sequence_adds_what_many_would_add() -> None:
    followed = Followed(StageCosts((1, 2, 17), (2.0, 2.0, 18.0)))  # steps of two cost as of one
    followed.submit(1, 1)
    while not followed.promises().num_decoding:
        followed.world.return_step()
    assert followed.promises().turn_s_per_row == pytest.approx(1.0)


def test_quantiles_are_the_nearest_values_below() -> None:
    assert quantiles([]) == ()
    assert quantiles([3.0]) == (3.0,) * 7
    # At 0, 0.05, 0.1, 0.25, 0.5, 0.75 and 1 of the way from the first to the last.
    assert quantiles([0.0, 1.0, 2.0, 3.0, 4.0]) == (0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0)
    assert quantiles([float(i) for i in range(21)]) == (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0)


def test_offline_requests_are_promised_nothing_and_count_by_themselves() -> None:
    followed = Followed()
    followed.submit(1, 4, offline=True)
    followed.world.return_step()
    followed.submit(2, 400, offline=True)  # can never fit
    followed.submit(3, 8, offline=True)  # has no token yet
    promises = followed.promises()
    assert (promises.num_waiting, promises.num_decoding, promises.slack_s) == (0, 0, ())
    assert (promises.num_offline, promises.num_offline_waiting) == (2, 1)
    assert (promises.slot_prefill_s, promises.pending_prefill_s) == (0, 0)
    used = promises.kv_tokens - promises.free_kv_tokens
    assert promises.offline_kv_tokens == used > 0


def test_a_block_that_offline_requests_share_counts_once() -> None:
    followed = Followed()
    for sequence_id in (1, 2, 3):
        submit = make_submit(sequence_id, [7] * 12, 60, stop=False)
        followed.world.submit(replace(submit, offline=True))
        followed.world.return_step()
    tables = [s.block_table for s in followed.world.scheduler.pool.live.values()]
    promises = followed.promises()
    used = promises.kv_tokens - promises.free_kv_tokens
    assert promises.offline_kv_tokens == used < sum(map(len, tables)) * BLOCK_SIZE


def test_free_kv_is_that_of_the_blocks_in_no_table() -> None:
    followed = Followed()
    followed.submit(1, 9)  # three blocks of four
    promises = followed.promises()
    assert promises.free_kv_tokens == (NUM_BLOCKS - 3) * BLOCK_SIZE
    assert promises.offline_kv_tokens == 0


def test_a_request_that_goes_on_from_another_daemon_is_fed_and_then_decodes() -> None:
    followed = Followed()
    submit = make_submit(1, [7] * 4, 60, stop=False)
    followed.world.submit(replace(submit, output_token_ids=array("i", [8] * 3).tobytes()))
    assert followed.promises().slot_prefill_s == pytest.approx(8.0)  # prompt and answer so far
    for _ in range(2):
        followed.world.return_step()
    promises = followed.promises()
    assert (promises.num_waiting, promises.num_decoding) == (0, 1)
    assert promises.slack_s == ()  # nobody here knows when its first token came


def test_changes_are_announced_but_not_too_often() -> None:
    followed = Followed()
    announcements = followed.announcements
    assert announcements.due_at == inf
    followed.submit(1, 4)  # 5 s are 5 % of the target: not more than that
    assert announcements.due_at == followed.world.now  # but the first phase begins
    announcements.note_sent(followed.world.now)
    sent_at = followed.world.now
    assert announcements.due_at == inf
    followed.submit(2, 5)  # 6 s
    assert announcements.due_at == pytest.approx(sent_at + SHORTEST_PAUSE_S)
    announcements.note_sent(followed.world.now)
    followed.world.hand(Abort(2))
    assert announcements.due_at == inf
    while followed.promises().phase == "prefill":
        followed.world.return_step()
    assert announcements.due_at < inf


def test_without_targets_nothing_is_announced() -> None:
    followed = Followed(ttft_slo=None, tpot_slo=None)
    followed.submit(1, 100)
    followed.world.run_dry()
    assert followed.announcements.due_at == inf
    assert isinstance(followed.world.events[-1][1], Event)
    assert Submit in {type(event) for _, event, _ in followed.world.events}

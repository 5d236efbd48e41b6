"""The parts of a sequence's time, from its milestones."""

from server.requests.sequence_parts import Loss, Mark, Part, parts_of


def names(marks: list[Mark], ended_at: float = 9.0) -> list[str]:
    return [part.name for part in parts_of(marks, 0.0, ended_at)]


def test_the_parts_follow_each_other_from_submission_to_end() -> None:
    assert parts_of([("scheduled", 1.0), ("sampled", 3.0)], 0.0, 9.0) == [
        Part("queue", 0.0, 1.0, ()),
        Part("prefill", 1.0, 3.0, ()),
        Part("decode", 3.0, 9.0, ()),
    ]


def test_what_was_never_reached_is_missing() -> None:
    assert names([]) == ["queue"]
    assert names([("scheduled", 1.0)]) == ["queue", "prefill"]
    assert parts_of([], 2.0, 9.0) == [Part("queue", 2.0, 9.0, ())]


def test_a_sequence_that_ends_with_its_first_token_is_not_decoded() -> None:
    assert names([("scheduled", 1.0), ("sampled", 9.0)]) == ["queue", "prefill"]


def test_a_preemption_lasts_until_the_next_token() -> None:
    marks: list[Mark] = [("scheduled", 1.0), ("sampled", 2.0)]
    marks += [("preempted", 4.0), ("scheduled", 6.0), ("sampled", 7.0)]
    *_, decode = parts_of(marks, 0.0, 9.0)
    assert decode == Part("decode", 2.0, 9.0, (Loss("preemption", 4.0, 7.0, 6.0),))


def test_a_loss_belongs_to_the_part_in_which_it_begins() -> None:
    marks: list[Mark] = [("scheduled", 1.0), ("stages_lost", 2.0), ("scheduled", 3.0)]
    marks += [("sampled", 4.0), ("engine_lost", 5.0), ("scheduled", 6.0), ("sampled", 7.0)]
    queue, prefill, decode = parts_of(marks, 0.0, 9.0)
    assert queue.losses == ()
    assert prefill.losses == (Loss("stage restart", 2.0, 4.0, 3.0),)
    assert decode.losses == (Loss("engine restart", 5.0, 7.0, 6.0),)


def test_a_loss_in_the_queue_ends_when_the_sequence_is_fed() -> None:
    queue, prefill, _ = parts_of(
        [("engine_lost", 1.0), ("scheduled", 3.0), ("sampled", 4.0)], 0.0, 9.0
    )
    assert queue.losses == (Loss("engine restart", 1.0, 3.0, 3.0),)
    assert prefill.losses == ()


def test_a_loss_that_is_never_made_good_lasts_to_the_end() -> None:
    marks: list[Mark] = [("scheduled", 1.0), ("sampled", 2.0), ("stages_lost", 4.0)]
    *_, decode = parts_of(marks, 0.0, 9.0)
    assert decode.losses == (Loss("stage restart", 4.0, 9.0, None),)


def test_a_second_loss_before_the_first_is_made_good_is_part_of_it() -> None:
    marks: list[Mark] = [("scheduled", 1.0), ("sampled", 2.0), ("preempted", 3.0)]
    marks += [("stages_lost", 4.0), ("scheduled", 5.0), ("sampled", 6.0)]
    *_, decode = parts_of(marks, 0.0, 9.0)
    assert decode.losses == (Loss("preemption", 3.0, 6.0, 5.0),)


def test_the_loss_of_an_engine_cannot_begin_before_what_its_engine_has_sent() -> None:
    marks: list[Mark] = [("scheduled", 2.0), ("sampled", 3.0), ("engine_lost", 0.5)]
    marks += [("scheduled", 5.0), ("sampled", 6.0)]
    *_, decode = parts_of(marks, 1.0, 9.0)
    assert decode.losses == (Loss("engine restart", 3.0, 6.0, 5.0),)

"""The queue: bounded, oldest first, and batches of like length."""

from predictor import asks
from predictor.asks import AskQueue, OpenAsk, batches
from predictor.checkpoint import Prediction
from wire.predictor_messages import Answer, Ask


def ask(request_id: int, *prompts: str) -> Ask:
    return Ask(request_id, prompts)


def test_asks_leave_in_the_order_of_their_arrival() -> None:
    queue = AskQueue()
    assert not queue
    for i in range(3):
        assert queue.add("server", ask(i, "a")) == 0
    assert queue
    assert [each.ask.request_id for each in queue.next_group()] == [0, 1, 2]
    assert not queue
    assert queue.num_prompts == 0


def test_in_a_full_queue_the_oldest_asks_are_dropped() -> None:
    queue = AskQueue(max_prompts=4)
    assert [queue.add("s", ask(i, "a", "b")) for i in range(3)] == [0, 0, 1]
    assert queue.num_prompts == 4
    assert queue.add("s", ask(3, "a", "b", "c")) == 2
    assert [each.ask.request_id for each in queue.next_group()] == [3]


def test_an_ask_above_the_bound_is_dropped_itself() -> None:
    queue = AskQueue(max_prompts=2)
    assert queue.add("s", ask(0, "a", "b", "c")) == 1
    assert not queue
    assert queue.num_prompts == 0


def test_a_group_takes_whole_asks_until_it_is_full() -> None:
    queue = AskQueue()
    prompts = ["a"] * (asks.GROUP_PROMPTS - 1)
    for i in range(3):
        queue.add("s", ask(i, *prompts))
    assert [each.ask.request_id for each in queue.next_group()] == [0, 1]
    assert [each.ask.request_id for each in queue.next_group()] == [2]


def test_batches_are_sorted_by_length_across_asks() -> None:
    first = OpenAsk("s", ask(0, *["a" * (2 * i) for i in range(40)]))
    second = OpenAsk("s", ask(1, *["a" * (2 * i + 1) for i in range(40)]))
    cut = list(batches([first, second]))
    assert [len(batch) for batch in cut] == [32, 32, 16]
    lens = [len(one.ask.prompts[i]) for batch in cut for one, i in batch]
    assert lens == list(range(80))


def test_an_answer_keeps_the_order_of_the_prompts() -> None:
    one = OpenAsk("s", ask(7, "long", "short"))
    one.found[1] = Prediction(0, 5, 0.1)
    assert not one.is_done
    one.found[0] = Prediction(3, 500, 0.2)
    assert one.is_done
    assert one.answer() == Answer(7, (3, 0), (500, 5), (0.2, 0.1))

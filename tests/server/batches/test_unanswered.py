"""Unanswered requests of an input file, and their order."""

import asyncio
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.batches.storage.custom_ids import CustomIds
from server.batches.storage.lines import ANY_LENGTH, longest_answer
from server.batches.unanswered import CHUNK_LINES, unanswered
from tests.server.batches.world import chat_line, line


def asked(path: Path, content: str, num_in_order: int, answered: tuple[str, ...] = ()) -> list[str]:
    """The custom_ids in order."""
    path.write_bytes(content.encode("utf-8"))
    done = CustomIds()
    for custom_id in answered:
        done.add(custom_id)

    async def ask() -> list[str]:
        return [r.custom_id async for r in unanswered(path, done.sorted(), num_in_order)]

    return asyncio.run(ask())


def test_the_first_requests_are_in_order_and_the_rest_longest_first(tmp_path: Path) -> None:
    max_tokens = [1, 5, 100, 7, 300, 90, 2]
    content = "\n".join(line(f"r{i}", max_tokens=number) for i, number in enumerate(max_tokens))
    path = tmp_path / "in.jsonl"
    assert asked(path, content, 2) == ["r0", "r1", "r4", "r2", "r5", "r3", "r6"]
    assert asked(path, content, 0) == ["r4", "r2", "r5", "r1", "r3", "r6", "r0"]
    assert asked(path, content, 7) == [f"r{i}" for i in range(7)]
    assert asked(path, content, 2, ("r1", "r4")) == ["r0", "r2", "r5", "r3", "r6"]


@given(
    lengths=st.lists(st.none() | st.integers(0, 2**40), max_size=40),
    blanks=st.lists(st.sampled_from(["", "\n", " \r\n"]), min_size=40, max_size=40),
    mark=st.booleans(),
    num_in_order=st.sampled_from([0, 1, 7, sys.maxsize]),
)
def test_every_request_comes_once(
    lengths: list[int | None],
    blanks: list[str],
    mark: bool,
    num_in_order: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = "\ufeff" * mark + "".join(
        blank + line(f"é{i}", max_tokens=length) + "\r\n"
        for i, (length, blank) in enumerate(zip(lengths, blanks, strict=False))
    )
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    ids = asked(path, content, num_in_order)
    assert sorted(ids) == sorted(f"é{i}" for i in range(len(lengths)))


def test_more_requests_than_are_read_at_once_keep_their_order(tmp_path: Path) -> None:
    count = 3 * CHUNK_LINES
    content = "".join(line(f"r{i}", max_tokens=1 + i) + "\n" for i in range(count))
    ids = asked(tmp_path / "in.jsonl", content, CHUNK_LINES)
    assert ids[:CHUNK_LINES] == [f"r{i}" for i in range(CHUNK_LINES)]
    classes = [(1 + int(id_[1:])).bit_length() for id_ in ids[CHUNK_LINES:]]
    assert classes == sorted(classes, reverse=True)
    assert len(set(ids)) == count


@pytest.mark.parametrize(
    ("body", "num_tokens"),
    [
        (b"{}", ANY_LENGTH),
        (b'{"max_tokens": 7}', 7),
        (b'{"max_tokens": 7, "max_completion_tokens": 9}', 9),
        (b'{"max_output_tokens": 9}', 9),
        (b'{"max_tokens": 7, "expected_tokens": 3}', 3),
        (b'{"max_tokens": null}', ANY_LENGTH),
        (b'{"max_tokens": "7"}', ANY_LENGTH),
        (b'{"max_tokens": -7}', ANY_LENGTH),
        (b'{"max_tokens": 1e3}', ANY_LENGTH),
        (b'{"max_tokens": %s}' % (b"9" * 5000), ANY_LENGTH),
        (b'{"max_tokens": %s}' % (b"[" * 900 + b"]" * 900), ANY_LENGTH),
    ],
)
def test_how_long_an_answer_may_be(body: bytes, num_tokens: int) -> None:
    assert longest_answer(body) == num_tokens


def test_a_chat_without_a_limit_may_be_long(tmp_path: Path) -> None:
    content = "\n".join([line("short", max_tokens=9), chat_line("long")])
    assert asked(tmp_path / "in.jsonl", content, 0) == ["long", "short"]

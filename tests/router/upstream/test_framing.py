"""Framing: whole chunks pass as they were received, wherever the network cuts them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.upstream.framing import (
    MAX_CHUNK_BYTES,
    Chunked,
    Framing,
    FramingError,
    Sized,
    UntilClosed,
    framing_of,
    payload,
)

PARTS = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def chunk(part: bytes, extension: bytes = b"") -> bytes:
    """One chunk."""
    return b"%x%b\r\n%b\r\n" % (len(part), extension, part)


def feed_cut(framing: Framing, data: bytes, cuts: list[int]) -> list[bytes]:
    """What each piece of the data yields."""
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [framing.feed(data[a:b]) for a, b in itertools.pairwise(bounds)]


@given(PARTS, st.lists(st.integers(0, 1000)), st.sampled_from([b"", b";x=1", b" "]))
def test_chunks_pass_unchanged_and_only_whole(
    parts: list[bytes], cuts: list[int], extension: bytes
) -> None:
    framing = Chunked()
    chunks = [chunk(part, extension) for part in parts]
    fed = feed_cut(framing, b"".join(chunks) + b"0\r\n\r\n", cuts)
    assert b"".join(fed) == b"".join(chunks)
    assert (framing.has_ended, framing.has_surplus) == (True, False)
    so_far, bounds, total = b"", {0}, 0
    for each in chunks:
        total += len(each)
        bounds.add(total)
    for piece in fed:
        so_far += piece
        assert len(so_far) in bounds, "a piece ends between two chunks"
        assert payload(so_far) == b"".join(parts)[: len(payload(so_far))]


@given(PARTS, st.lists(st.integers(0, 1000)), st.integers(1, 200))
def test_a_body_that_is_cut_has_not_ended(
    parts: list[bytes], cuts: list[int], missing: int
) -> None:
    whole = b"".join(map(chunk, parts)) + b"0\r\n\r\n"
    framing = Chunked()
    feed_cut(framing, whole[: max(0, len(whole) - missing)], cuts)
    framing.feed_end()
    assert not framing.has_ended


def test_trailers_are_ignored_and_a_surplus_is_noticed() -> None:
    framing = Chunked()
    assert framing.feed(chunk(b"a") + b"0\r\nx-one: 1\r\n") == chunk(b"a")
    assert not framing.has_ended
    assert framing.feed(b"\r\n") == b""
    assert (framing.has_ended, framing.has_surplus) == (True, False)
    assert framing.feed(b"more") == b""
    assert framing.has_surplus


def test_a_large_chunk_in_many_pieces_is_held_back_until_it_is_complete() -> None:
    whole, framing = chunk(b"x" * 1_000_000), Chunked()
    pieces = [framing.feed(whole[i : i + 1000]) for i in range(0, len(whole), 1000)]
    assert set(pieces[:-1]) == {b""}
    assert pieces[-1] == whole


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"\r\n",
        b"1\r\nabc\r\n",
        b"x" * 2000,
        b"%x\r\n" % (MAX_CHUNK_BYTES + 1),
    ],
)
def test_what_are_no_chunks_is_an_error(data: bytes) -> None:
    with pytest.raises(FramingError):
        Chunked().feed(data)


@given(st.binary(max_size=50), st.lists(st.integers(0, 100)))
def test_a_sized_body_ends_after_its_bytes(body: bytes, cuts: list[int]) -> None:
    framing = Sized(len(body))
    assert b"".join(feed_cut(framing, body, cuts)) == body
    assert (framing.has_ended, framing.has_surplus) == (True, False)


def test_what_follows_a_sized_body_is_no_part_of_it() -> None:
    framing = Sized(2)
    assert framing.feed(b"abc") == b"ab"
    assert framing.has_surplus


def test_the_end_of_the_connection_ends_only_a_body_without_another_end() -> None:
    bodies: list[tuple[Framing, bool]] = [(UntilClosed(), True), (Sized(1), False)]
    for framing, ends in bodies:
        framing.feed_end()
        assert framing.has_ended is ends


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (200, {b"transfer-encoding": b"Chunked", b"content-length": b"3"}, Chunked),
        (200, {b"content-length": b"3"}, Sized),
        (200, {}, UntilClosed),
        (204, {}, Sized),
    ],
)
def test_the_head_tells_the_framing(
    status: int, headers: dict[bytes, bytes], kind: type[object]
) -> None:
    assert isinstance(framing_of(status, headers), kind)


@pytest.mark.parametrize(
    "headers",
    [
        {b"transfer-encoding": b"gzip, chunked"},
        {b"content-length": b"-1"},
        {b"content-length": b"9" * 30},
    ],
)
def test_a_head_without_a_known_framing_is_an_error(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(FramingError):
        framing_of(200, headers)

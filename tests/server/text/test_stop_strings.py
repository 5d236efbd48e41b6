"""Stop strings: no part of one is shown, however the text is split."""

from hypothesis import given
from hypothesis import strategies as st

from server.text.stop_strings import StopStrings

few_letters = st.text("ab€\n", max_size=24)
stop_lists = st.lists(st.text("ab€\n", min_size=1, max_size=5), min_size=1, max_size=4)


def one_shot(text: str, stops: list[str]) -> tuple[str, bool]:
    """The reference: grow the text by a character until it ends in a stop string."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def in_pieces(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    stop_strings = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, stopped = stop_strings.push(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, stop_strings.flush()], False


@given(st.lists(few_letters, max_size=8), stop_lists)
def test_any_cut_into_pieces_gives_the_one_shot_text(pieces: list[str], stops: list[str]) -> None:
    shown, stopped = in_pieces(pieces, stops)
    assert ("".join(shown), stopped) == one_shot("".join(pieces), stops)


@given(st.lists(few_letters, max_size=8), stop_lists)
def test_nothing_is_held_back_without_need(pieces: list[str], stops: list[str]) -> None:
    stop_strings = StopStrings(stops)
    given_text, shown = "", ""
    for piece in pieces:
        text, stopped = stop_strings.push(piece)
        if stopped:
            return
        given_text, shown = given_text + piece, shown + text
        held = given_text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_string_over_three_pieces_is_cut_out() -> None:
    assert in_pieces(["one ST", "O", "P two"], ["STOP"]) == (["one ", "", ""], True)


def test_held_back_text_is_shown_when_it_is_no_stop_string() -> None:
    assert in_pieces(["one ST", "AY"], ["STOP"]) == (["one ", "STAY", ""], False)


@given(few_letters, st.lists(few_letters, max_size=8), stop_lists)
def test_a_stop_string_may_begin_in_skipped_text_but_not_end_in_it(
    skipped: str, pieces: list[str], stops: list[str]
) -> None:
    stop_strings = StopStrings(stops)
    middle = len(skipped) // 2
    shown = stop_strings.skip(skipped[:middle]) + stop_strings.skip(skipped[middle:])
    assert shown == skipped
    stopped = False
    for piece in pieces:
        text, stopped = stop_strings.push(piece)
        shown += text
        if stopped:
            break
    else:
        shown += stop_strings.flush()
    whole, expected = skipped + "".join(pieces), (skipped + "".join(pieces), False)
    for end in range(len(skipped) + 1, len(whole) + 1):
        complete = [stop for stop in stops if whole[:end].endswith(stop)]
        if complete:
            cut = end - max(map(len, complete))
            expected = whole[: max(cut, len(skipped))], True
            break
    assert (shown, stopped) == expected


@given(st.lists(few_letters, max_size=4), few_letters, stop_lists)
def test_a_piece_that_would_end_the_text_is_told_before(
    pieces: list[str], last: str, stops: list[str]
) -> None:
    stop_strings = StopStrings(stops)
    for piece in pieces:
        if stop_strings.push(piece)[1]:
            return
    told = stop_strings.is_ended_by(last)
    assert stop_strings.push(last)[1] == told

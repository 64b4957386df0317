"""Stop strings, in texts that arrive in any pieces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from steerserve.engine.stops import StopMatcher

PIECES = st.lists(st.text("abc", max_size=4), max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)
MANY = settings(max_examples=300, deadline=None, derandomize=True)


def expected(pieces: list[str], stops: tuple[str, ...], *, include: bool) -> tuple[str, str | None, int]:
    """Return the text, the stop string and the number of pieces read, looking at the whole text after each piece."""
    whole = ""
    for number, piece in enumerate(pieces, start=1):
        whole += piece
        hits = [(whole.index(stop), -len(stop), stop) for stop in stops if stop in whole]
        if hits:
            start, _, stop = min(hits)
            return whole[:start] + stop * include, stop, number
    return whole, None, len(pieces)


@MANY
@given(pieces=PIECES, stops=STOPS, include=st.booleans())
def test_text_ends_before_the_first_stop_string_however_it_is_split(
    pieces: list[str], stops: tuple[str, ...], include: bool
) -> None:
    matcher = StopMatcher(stops, include=include)
    text, matched, used = "", None, 0
    for used, piece in enumerate(pieces, start=1):  # noqa: B007 the number is wanted after the loop
        added, matched = matcher.push(piece, can_stop=True)
        text += added
        if matched is not None:
            break
    if matched is None:
        text += matcher.flush()
    assert (text, matched, used) == expected(pieces, stops, include=include)


@MANY
@given(pieces=PIECES, stops=STOPS)
def test_all_that_can_no_longer_become_a_stop_string_is_sent_at_once(pieces: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops, include=False)
    whole, sent = "", ""
    for piece in pieces:
        added, matched = matcher.push(piece, can_stop=True)
        whole, sent = whole + piece, sent + added
        if matched is not None:
            return
        longest = max(size for stop in stops for size in range(len(stop)) if whole.endswith(stop[:size]))
        assert sent == whole[: len(whole) - longest]


@MANY
@given(pieces=PIECES, stops=STOPS)
def test_nothing_is_lost_or_doubled_without_a_match(pieces: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(tuple(stop + "X" for stop in stops), include=False)
    sent = "".join(matcher.push(piece, can_stop=True).text for piece in pieces)
    assert sent + matcher.flush() == "".join(pieces)


def test_nothing_is_matched_before_it_may_stop_but_a_beginning_is_held() -> None:
    matcher = StopMatcher(("ab",), include=False)
    assert matcher.push("xab", can_stop=False) == ("xab", None)
    assert matcher.push("ya", can_stop=False) == ("y", None)
    assert matcher.push("b", can_stop=True) == ("", "ab")


def test_text_that_turns_out_to_be_no_stop_string_is_sent() -> None:
    matcher = StopMatcher(("</end>",), include=False)
    assert [matcher.push(piece, can_stop=True).text for piece in ("a</", "en", "d", "!")] == ["a", "", "", "</end!"]


def test_of_stop_strings_at_one_place_the_longest_matches() -> None:
    assert StopMatcher(("a", "ab"), include=True).push("xab", can_stop=True) == ("xab", "ab")


def test_an_empty_stop_string_matches_nothing() -> None:
    assert StopMatcher(("",), include=False).push("text", can_stop=True) == ("text", None)

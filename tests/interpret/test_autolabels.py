"""Labels that need no language model, worked out on a handful of snippets."""

from __future__ import annotations

import pytest

from steerserve.interpret.autolabels import Labeller
from steerserve.store.records import Activity, FeatureRecord, TextSnippet

NO_ACTIVITY = Activity(0, 0, 0.0, 0.0, (), ())
SPECIAL = 256


def token_bytes(token_id: int) -> bytes:
    return b"<|special|>" if token_id == SPECIAL else bytes([token_id])


def snippet(text: str, peak: int, interval: int | None = None) -> TextSnippet:
    token_ids = tuple(text.encode())
    return TextSnippet(token_ids, (0.0,) * len(token_ids), peak, interval)


def feature(number: int, snippets: list[TextSnippet], promoted: tuple[tuple[int, float], ...] = ()) -> FeatureRecord:
    return FeatureRecord(number, NO_ACTIVITY, tuple(snippets), (), promoted, (), ())


def labels(*features: FeatureRecord) -> list[dict[str, tuple[str, float | None]]]:
    labeller = Labeller(token_bytes, frozenset({SPECIAL}), created=7.0)
    for one in features:
        labeller.read(one.feature, one.snippets)
    made = [labeller.labels(one) for one in features]
    assert all(label.created == 7.0 for some in made for label in some)
    return [{label.origin: (label.text, label.score) for label in some} for some in made]


def test_a_token_that_most_windows_peak_at_is_named_in_whatever_spelling() -> None:
    snippets = [snippet("a q b", 2), snippet("a Q b", 2), snippet("a q c", 2), snippet("a x c", 2)]
    [found] = labels(feature(0, snippets))
    assert found["peak"] == ('fires on "q"', 0.75)
    [found] = labels(feature(0, [*snippets, snippet("a y c", 2), snippet("a z c", 2)]))
    assert "peak" not in found


def test_windows_of_the_intervals_make_no_label() -> None:
    strong = [snippet("a x b", 2), snippet("a y b", 2), snippet("a z b", 2)]
    [found] = labels(feature(0, [*strong, *(snippet("a q b", 2, interval=0) for _ in range(25))]))
    assert found == {}


def test_a_piece_of_one_word_is_named_with_the_word() -> None:
    [found] = labels(feature(0, [snippet("an elephant", 3), snippet("my elephant", 3), snippet("the elephant", 5)]))
    assert found["peak"] == ('fires on "e" of "elephant"', 2 / 3)


@pytest.mark.parametrize(("token", "shown"), [("\n", '"\\n"'), ('"', "'\"'"), (" ", '" "')])
def test_what_cannot_be_seen_is_written_so_that_it_can(token: str, shown: str) -> None:
    [found] = labels(feature(0, [snippet(f"a{token}b", 1) for _ in range(4)]))
    assert found["peak"] == (f"fires on {shown}", 1.0)


def test_promoted_tokens_are_named_where_the_first_stands_out() -> None:
    clear = ((ord("B"), 9.0), (ord("b"), 8.0), (ord("c"), 5.0), (ord("d"), 4.0), (ord("e"), 3.0))
    noise = ((ord("B"), 4.5), (ord("b"), 4.4))
    one, other = labels(feature(0, [], clear), feature(1, [], noise))
    assert one == {"promoted": ('writes "B", "c", "d"', 9.0)}
    assert other == {}


def test_words_are_those_that_set_the_windows_apart() -> None:
    everywhere = [snippet(f"the x{letter}x is there", 5) for letter in "abcdefgh"]
    ships = [snippet(f"the ship is x{letter}x there", 14) for letter in "abcd"]
    others = [feature(number, everywhere) for number in range(1, 20)]
    one, *_ = labels(feature(0, ships), *others)
    # "the", "is" and "there" are in every feature's snippets, what is in one snippet alone sets none apart.
    assert one["words"] == ("ship", 1.0)


def test_the_word_that_the_peak_is_in_counts_twice() -> None:
    words = ["river", "lake", "pond", "brook", "creek", "fjord", "sound", "delta", "marsh", "canal"]
    snippets = [snippet(f"a {word} on the map", 3) for word in words]
    others = [feature(number, [snippet("a b on the map", 3) for _ in range(5)]) for number in range(1, 20)]
    one, *_ = labels(feature(0, snippets), *others)
    text, score = one["words"]
    assert set(text.split(", ")) <= set(words)
    assert score == pytest.approx(0.1)


def test_a_word_that_the_cut_left_in_pieces_and_special_tokens_are_no_words() -> None:
    whole = snippet("reliable things like that q", 26)
    cut = TextSnippet((SPECIAL, *whole.token_ids), (0.0, *whole.acts), whole.peak + 1, None)
    others = [feature(number, [snippet("a b", 0)]) for number in range(1, 20)]
    one, *_ = labels(feature(0, [cut] * 4), *others)
    assert one["words"][0].split(", ") == ["like", "that"]

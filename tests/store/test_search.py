"""Searching finds what a search by hand finds, best matches first."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import InvalidRequestError
from steerserve.store.records import Calibration, FeatureRecord, Label
from steerserve.store.search import MAX_LETTERS, MAX_WORDS, Sort
from steerserve.store.store import FeatureStore
from tests.interpret.known import META, byte_of, feature

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["bridge", "river", "apple", "7", "café", "quick", "über", "xyz"]


def store_of(
    path: Path, features: list[FeatureRecord], calibrations: dict[int, Calibration] | None = None
) -> FeatureStore:
    store = FeatureStore.create(path / "features.sqlite3", META)
    store.write_features(features, byte_of)
    store.write_calibrations(calibrations or {})
    return store


def found(store: FeatureStore, query: str, sort: Sort = "relevance") -> list[int]:
    rows, has_more = store.search(query, sort, 100)
    assert not has_more
    return [row.feature for row in rows]


@pytest.fixture
def known(tmp_path: Path) -> FeatureStore:
    features = [
        feature(0, ["over the river we go today"], active=5, maximum=9.0),
        feature(1, ["the old bridge"], active=50, maximum=1.0),
        feature(2, ["something else entirely"], label="bridges of stone", active=500, maximum=3.0),
        feature(3, ["a bridge that I saw by the long river"], active=0, maximum=0.0),
        feature(4, ["nothing here"], promoted="Q"),
        feature(5, ["in 東京都 there is food"]),
    ]
    features += [feature(number, ["filler text without any of it"], active=1) for number in range(6, 16)]
    return store_of(tmp_path, features, {0: Calibration(40.0, 0.2), 1: Calibration(30.0, 0.004)})


def test_a_label_is_a_better_match_than_the_peak_and_the_peak_than_a_snippet(known: FeatureStore) -> None:
    assert found(known, "bridge") == [2, 1, 3]


def test_words_are_found_in_other_forms_and_cases(known: FeatureStore) -> None:
    assert found(known, "BRIDGES") == [2, 1, 3]


def test_the_last_word_may_be_a_beginning_and_others_not(known: FeatureStore) -> None:
    assert found(known, "brid") == [2, 1, 3]
    assert found(known, "brid river") == []
    assert found(known, "river brid") == [3]


def test_every_word_must_be_somewhere_be_it_in_label_or_snippet(known: FeatureStore) -> None:
    assert found(known, "stone entirely") == [2]
    assert found(known, "river bridge") == [3]


def test_promoted_tokens_are_searched(known: FeatureStore) -> None:
    assert found(known, "q") == [4]


def test_scripts_without_spaces_are_searched_letter_by_letter(known: FeatureStore) -> None:
    assert found(known, "京都") == [5]
    known.set_label(6, Label("京都", "person"))
    assert found(known, "都") == [6, 5]
    assert known.labels([6]) == {6: "京都"}


@pytest.mark.parametrize(
    "query", ["!!", "'", '"', "* OR", "bridge AND NOT river", "label:bridge", "NEAR(a b)", "\x00", "-", "🙂"]
)
def test_signs_mean_nothing_to_the_search(known: FeatureStore, query: str) -> None:
    words = re.findall(r"\w+", query)
    assert found(known, query) == found(known, " ".join(words)) if words else found(known, query) == []


def test_a_person_finds_a_feature_by_their_own_label_at_once(known: FeatureStore) -> None:
    known.set_label(9, Label("spans of steel", "person"))
    assert found(known, "steel") == [9]
    known.set_label(9, None)
    assert found(known, "steel") == []


def test_features_that_write_come_before_equal_matches_that_do_not(tmp_path: Path) -> None:
    features = [feature(number, ["a bridge" if number < 6 else "nothing"]) for number in range(16)]
    scores = {0: 0.0, 1: 0.5, 2: 0.001, 4: 0.02}
    store = store_of(tmp_path, features, {number: Calibration(1.0, score) for number, score in scores.items()})
    assert found(store, "bridge") == [1, 4, 2, 0, 3, 5]
    rows, _ = store.search("bridge", limit=4)
    assert rows[0].relevance == pytest.approx((rows[3].relevance or 0) * (1 + 0.5 / 0.51))


def test_a_label_with_the_very_word_comes_before_those_of_the_same_stem(tmp_path: Path) -> None:
    labels = ["university, campus", "universal", "Universe, galaxies, bang, cosmos"]
    store = store_of(tmp_path, [feature(number, ["x"], label=label) for number, label in enumerate(labels)])
    assert found(store, "universe")[0] == 2
    assert found(store, "universe universe")[0] == 2


def test_an_empty_query_lists_everything(known: FeatureStore) -> None:
    known.set_label(3, Label("dead", "person"))
    assert found(known, "")[:2] == [0, 1]
    assert found(known, " ")[-1] == 3
    assert found(known, "", "steerability") == found(known, "")
    assert found(known, "", "density")[:3] == [2, 1, 4]
    assert found(known, "", "max")[:2] == [0, 2]
    assert found(known, "", "feature") == list(range(16))
    assert found(known, "river", "max") == [0, 3]


def test_pages_put_together_are_the_whole(known: FeatureStore) -> None:
    pages = [known.search("", "density", 3, offset) for offset in range(0, 16, 3)]
    assert [row.feature for rows, _ in pages for row in rows] == found(known, "", "density")
    assert [has_more for _, has_more in pages] == [True] * 5 + [False]
    rows, has_more = known.search("", "density", 16)
    assert (len(rows), has_more) == (16, False)


def test_rows_show_what_is_known(known: FeatureStore) -> None:
    (row,), _ = known.search("", "max", 1)
    assert (row.feature, row.density, row.maximum, row.relevance) == (0, 0.005, 9.0, None)
    assert row.calibration == Calibration(40.0, 0.2)
    assert row.snippet == feature(0, ["over the river we go today"], maximum=9.0).snippets[0]
    known.set_label(99, Label("made by hand", "person"))
    (row,), _ = known.search("hand")
    assert (row.feature, row.density, row.maximum, row.calibration, row.snippet) == (99, None, None, None, None)
    assert row.label is not None


def test_too_many_words_are_refused(known: FeatureStore) -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_WORDS}"):
        known.search("a " * (MAX_WORDS + 1))


def test_letters_of_scripts_without_spaces_count_apart(known: FeatureStore) -> None:
    sentence = "東京都の隅田川に架かる橋は夜になると青い光で照らされ多くの人が写真を撮りに訪れる"
    known.set_label(7, Label(f"{sentence} bridges", "person"))
    assert found(known, sentence) == [7]
    assert found(known, f"bridge {sentence}") == [7]
    known.search(" ".join(["a"] * MAX_WORDS) + "東" * MAX_LETTERS)
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_WORDS} and {MAX_LETTERS}"):
        known.search("東" * (MAX_LETTERS + 1))


def test_what_is_found_is_what_a_search_by_hand_finds(tmp_path: Path) -> None:
    """Words here have one form only, so that a set of words is all there is to know."""
    draw = random.Random(0)
    texts = {number: [" ".join(draw.choices(WORDS, k=3)) for _ in range(2)] for number in range(300)}
    labels = {number: " ".join(draw.choices(WORDS, k=2)) for number in range(0, 300, 3)}
    features = [feature(number, texts[number], label=labels.get(number)) for number in texts]
    store = store_of(tmp_path, features)
    for _ in range(60):
        words = draw.choices(WORDS, k=draw.randint(1, 4))
        expected = {
            number
            for number, snippets in texts.items()
            if set(words) <= {*" ".join(snippets).split(), *labels.get(number, "").split()}
        }
        rows, has_more = store.search(" ".join(words), "feature", 300)
        assert ([row.feature for row in rows], has_more) == (sorted(expected), False), words

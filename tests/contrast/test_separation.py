"""Figures that separate two sets are right, and held against chance."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from steerserve.contrast import separation
from steerserve.contrast.separation import _aucs, folds, held_out_projection, rank_features, smallest_p_value
from steerserve.core.observer import StoppedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_FEATURES = 2000


def noise(num_texts: int, seed: int) -> NDArray[np.float32]:
    """Activations as sparse as a dictionary's, that know nothing of the sets."""
    drawn = np.random.default_rng(seed).normal(size=(num_texts, NUM_FEATURES))
    return np.maximum(drawn - 0.5, 0).astype(np.float32)


def brute_force_auc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    pairs = list(itertools.product(positive.tolist(), negative.tolist()))
    return sum(1.0 if one > other else 0.5 if one == other else 0.0 for one, other in pairs) / len(pairs)


def test_auc_and_means_are_those_of_the_definition() -> None:
    acts = noise(13, seed=0)
    for found in rank_features(acts, 6, 50):
        column = acts[:, found.feature]
        assert found.auc == pytest.approx(brute_force_auc(column[:6], column[6:]))
        assert found.positive_mean == pytest.approx(float(column[:6].mean()))
        assert found.mean_difference == pytest.approx(float(column[:6].mean() - column[6:].mean()), abs=1e-6)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    # With a single positive text, the AUC tells its rank.
    aucs = _aucs(np.array([[0.0, 3.0, 0.0, 1.0, 3.0, 3.0]]), np.eye(6, dtype=bool))[:, 0]
    assert (1 + 5 * aucs).tolist() == pytest.approx([1.5, 5.0, 1.5, 3.0, 5.0, 5.0])


@pytest.mark.parametrize("num_texts", [4, 8, 20])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_feature_is_found_among_thousands(num_texts: int, sign: int) -> None:
    acts = noise(2 * num_texts, seed=1)
    marked = slice(0, num_texts) if sign > 0 else slice(num_texts, None)
    acts[marked, 77] += 6
    best, second, *_ = rank_features(acts, num_texts, 10)
    assert (best.feature, best.auc) == (77, 1.0 if sign > 0 else 0.0)
    assert math.copysign(1, best.mean_difference) == sign
    assert best.held_out_auc == pytest.approx(1.0)
    assert best.p_value <= 0.03
    assert second.p_value > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("num_texts", [4, 8, 20])
def test_shuffled_labels_are_not_told_from_chance(num_texts: int) -> None:
    held_out, p_values = [], []
    for seed in range(12):
        found = rank_features(noise(2 * num_texts, seed), num_texts, 5)
        # On the texts that they were chosen by, the best of thousands look as if they meant something.
        assert abs(found[0].auc - 0.5) > 0.2
        held_out.append(np.mean([one.held_out_auc for one in found]))
        p_values.append(found[0].p_value)
    assert 0.4 < np.mean(held_out) < 0.6
    assert np.mean(np.array(p_values) <= 0.05) <= 0.2


def test_the_smallest_sets_prove_nothing() -> None:
    acts = noise(4, seed=3)
    acts[:2, 5] += 100
    best = rank_features(acts, 2, 1)[0]
    assert (best.feature, best.auc) == (5, 1.0)
    assert best.p_value >= 1 / 6


@pytest.mark.parametrize(("num_positive", "num_negative"), [(2, 2), (3, 3), (2, 5), (3, 4), (4, 4), (3, 100), (9, 9)])
def test_the_smallest_p_value_is_that_of_a_feature_that_separates_like_no_other(
    num_positive: int, num_negative: int
) -> None:
    acts = np.zeros((num_positive + num_negative, 1), dtype=np.float32)
    acts[:num_positive] = 1
    assert rank_features(acts, num_positive, 1)[0].p_value == pytest.approx(
        smallest_p_value(num_positive, num_negative), rel=0.01
    )


def test_features_that_never_move_are_left_out() -> None:
    acts = np.zeros((6, 4), dtype=np.float32)
    assert rank_features(acts, 3, 10) == []
    acts[0, 2] = 1
    acts[:, 3] = 9
    assert [one.feature for one in rank_features(acts, 3, 10)] == [2]


def test_the_same_texts_give_the_same_figures() -> None:
    assert rank_features(noise(24, seed=5), 11, 20) == rank_features(noise(24, seed=5), 11, 20)


@pytest.mark.slow
@pytest.mark.parametrize("num_values", [1, 1 << 10, 1 << 14])
def test_figures_do_not_depend_on_how_many_features_are_computed_at_once(
    num_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = noise(14, seed=6)[:, :300]
    whole = rank_features(acts, 6, 40)
    monkeypatch.setattr(separation, "_BLOCK_VALUES", num_values)
    for one, other in zip(whole, rank_features(acts, 6, 40), strict=True):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), rel=1e-12)


def test_a_ranking_stops_between_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separation, "_BLOCK_VALUES", 14 * 100)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(0)
        return len(asked) > last

    for last in (0, 7, 45, 100):
        asked.clear()
        with pytest.raises(StoppedError):
            rank_features(noise(14, seed=6)[:, :300], 6, 5, should_stop=should_stop)
        assert len(asked) == last + 1


@pytest.mark.parametrize(("num_positive", "num_negative"), [(2, 2), (3, 9), (40, 40)])
def test_each_round_of_folds_leaves_every_text_out_once(num_positive: int, num_negative: int) -> None:
    labels = np.arange(num_positive + num_negative) < num_positive
    left_out = np.stack(list(folds(labels)))
    num_folds = min(5, num_positive, num_negative)
    for start in range(0, len(left_out), num_folds):
        assert (left_out[start : start + num_folds].sum(0) == 1).all()
    for one in left_out:
        assert labels[one].any()
        assert (~labels[one]).any()
        assert labels[~one].any()
        assert (~labels[~one]).any()


def test_a_projection_is_judged_on_texts_that_it_was_not_made_from() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20, 500))
    assert abs(held_out_projection(x, 10) - 0.5) < 0.25
    x[:10, 0] += 50
    assert held_out_projection(x, 10) == pytest.approx(1.0)

"""Which features tell two sets of texts apart, and whether that is more than chance.

Knows numbers only. With thousands of features and a handful of texts some feature always separates them, so every
figure that is shown is held against what comes out on texts that were left out, and with the labels shuffled.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from steerserve.core.observer import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jaxtyping import Bool, Float, Int
    from numpy.typing import NDArray

MAX_FOLDS = 5
_MAX_REPEATS = 10
_REPEATED_TEXTS = 200
"""Folds are drawn anew until about so many texts have been left out: few texts need it, many do not."""
_NUM_PERMUTATIONS = 500
_BLOCK_VALUES = 1 << 21
"""Numbers of one kind that are computed at once: 16 MB of each of about ten."""
_TIE_BREAK = 1e-3
"""Weight of the difference's size beside the AUC, which many features share where there are few texts."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A feature, and how well it tells the sets apart."""

    feature: int
    auc: float
    """Probability that it is more active on a text of the first set than on one of the second; ties count half."""
    held_out_auc: float
    """Mean AUC, on texts left out, of whichever feature had this rank on the others: .5 is chance."""
    p_value: float
    """How often shuffled labels give any feature that separates as well."""
    positive_mean: float
    negative_mean: float

    @property
    def mean_difference(self) -> float:
        """How much more active it is on the first set."""
        return self.positive_mean - self.negative_mean


def rank_features(
    acts: Float[NDArray[np.float32], "texts features"],
    num_positive: int,
    limit: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Candidate]:
    """Return the features that separate the first `num_positive` texts from the others, the best first.

    What it takes beside `acts` does not grow with the features, but for some numbers each. `should_stop` is asked
    often.

    Source: AUC as the Mann-Whitney statistic; the studentised difference as in SAM (Tusher et al. 2001); p-values by
    the largest statistic over all features (Westfall and Young 1993).

    Raises:
        StoppedError: `should_stop` said so.
    """
    moving = np.flatnonzero(np.ptp(acts, axis=0) > 0)
    labels = np.arange(len(acts)) < num_positive
    if not len(moving):
        return []
    table = _Table(acts, moving, should_stop)
    spread = _spread(table.blocks(len(acts)))
    aucs, statistics = _separate_all(table, labels, spread)
    order = np.argsort(-statistics, kind="stable")[:limit]
    held_out = _held_out_aucs(table, labels, len(order))
    p_values = _p_values(table, labels, statistics[order], spread)
    best = table.rows(order)
    return [
        Candidate(
            feature=int(moving[place]),
            auc=float(aucs[place]),
            held_out_auc=float(held_out[rank]),
            p_value=float(p_values[rank]),
            positive_mean=float(best[rank, labels].mean()),
            negative_mean=float(best[rank, ~labels].mean()),
        )
        for rank, place in enumerate(order)
    ]


def smallest_p_value(num_positive: int, num_negative: int) -> float:
    """Return the p-value of a feature that separates as many texts of two sets better than any other labels do."""
    num_arrangements = math.comb(num_positive + num_negative, num_positive)
    if num_arrangements > _NUM_PERMUTATIONS:
        return 1 / (_NUM_PERMUTATIONS + 1)
    # Of sets of one size, the same feature separates them as well the other way round.
    return (2 if num_positive == num_negative else 1) / num_arrangements


def held_out_projection(x: Float[NDArray[np.float64], "texts width"], num_positive: int) -> float:
    """Return the mean AUC, on texts left out, of the projection on the difference of the others' means."""
    labels = np.arange(len(x)) < num_positive
    aucs = []
    for left_out in folds(labels):
        rest = ~left_out
        direction = x[rest & labels].mean(0) - x[rest & ~labels].mean(0)
        aucs.append(_aucs((x[left_out] @ direction)[None], labels[left_out][None])[0, 0])
    return float(np.mean(aucs))


def folds(labels: Bool[NDArray[np.bool_], " texts"]) -> Iterator[Bool[NDArray[np.bool_], " texts"]]:
    """Yield sets of texts to leave out, each with some of both labels; drawn several times over, always the same."""
    generator = np.random.default_rng(0)
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    num_folds = min(MAX_FOLDS, len(positive), len(negative))
    for _ in range(max(1, min(_MAX_REPEATS, _REPEATED_TEXTS // len(labels)))):
        shuffled = [generator.permutation(positive), generator.permutation(negative)]
        for fold in range(num_folds):
            left_out = np.zeros(len(labels), dtype=bool)
            for places in shuffled:
                left_out[places[fold::num_folds]] = True
            yield left_out


@dataclass(frozen=True, slots=True)
class _Table:
    """The activations of the features that move at all, in float64 some at a time."""

    acts: Float[NDArray[np.float32], "texts features"]
    moving: Int[NDArray[np.int64], " moving"]
    should_stop: Callable[[], bool]

    def rows(self, places: Int[NDArray[np.int64], " some"]) -> Float[NDArray[np.float64], "some texts"]:
        """Return the activations of those of the moving features."""
        return np.ascontiguousarray(self.acts[:, self.moving[places]].T, dtype=np.float64)

    def blocks(self, num_values: int) -> Iterator[Float[NDArray[np.float64], "some texts"]]:
        """Yield all of them in order, as many at once as there is room for with `num_values` numbers each.

        Raises:
            StoppedError: nobody waits for what comes of it.
        """
        size = max(1, _BLOCK_VALUES // num_values)
        for start in range(0, len(self.moving), size):
            if self.should_stop():
                message = "The ranking was stopped."
                raise StoppedError(message)
            yield self.rows(np.arange(start, min(start + size, len(self.moving))))


def _held_out_aucs(
    table: _Table, labels: Bool[NDArray[np.bool_], " texts"], num_ranks: int
) -> Float[NDArray[np.float64], " ranks"]:
    found = []
    for left_out in folds(labels):
        rest = ~left_out
        spread = _spread(block[:, rest] for block in table.blocks(len(labels)))
        aucs, statistics = _separate_all(table, labels, spread, rest)
        best = np.argsort(-statistics, kind="stable")[:num_ranks]
        tested = _aucs(table.rows(best)[:, left_out], labels[left_out][None])[0]
        # A feature that marked the second set on the other texts should do so here.
        found.append(np.where(aucs[best] >= 0.5, tested, 1 - tested))  # noqa: PLR2004 chance
    means: NDArray[np.float64] = np.mean(found, axis=0)
    return means


def _separate_all(
    table: _Table,
    labels: Bool[NDArray[np.bool_], " texts"],
    spread: float,
    texts: Bool[NDArray[np.bool_], " texts"] | None = None,
) -> tuple[Float[NDArray[np.float64], " moving"], Float[NDArray[np.float64], " moving"]]:
    """Return the AUC of every feature on some of the texts, all if None, and what features are ranked by."""
    kept = labels[None] if texts is None else labels[texts][None]
    found = [
        _separate(block if texts is None else block[:, texts], kept, spread) for block in table.blocks(len(labels))
    ]
    return np.concatenate([aucs[0] for aucs, _ in found]), np.concatenate([statistics[0] for _, statistics in found])


def _p_values(
    table: _Table, labels: NDArray[np.bool_], observed: NDArray[np.float64], spread: float
) -> Float[NDArray[np.float64], " candidates"]:
    shuffled, is_whole = _shuffled(labels)
    largest = np.zeros(len(shuffled))
    for block in table.blocks(max(len(shuffled), len(labels))):
        _, statistics = _separate(block, shuffled, spread)
        largest = np.maximum(largest, statistics.max(1))
    reached = (largest[:, None] >= observed - 1e-9).sum(0)
    # The labels as they are count as one shuffle, unless they are among them.
    extra = 0 if is_whole else 1
    p_values: NDArray[np.float64] = (reached + extra) / (len(shuffled) + extra)
    return p_values


def _shuffled(labels: NDArray[np.bool_]) -> tuple[Bool[NDArray[np.bool_], "shuffles texts"], bool]:
    """Return all arrangements of the labels where they are few, else a sample; and whether it is all."""
    num_texts, num_positive = len(labels), int(labels.sum())
    if math.comb(num_texts, num_positive) <= _NUM_PERMUTATIONS:
        chosen = list(itertools.combinations(range(num_texts), num_positive))
        every = np.zeros((len(chosen), num_texts), dtype=bool)
        every[np.arange(len(chosen))[:, None], np.array(chosen)] = True
        return every, True
    generator = np.random.default_rng(0)
    return np.stack([generator.permutation(labels) for _ in range(_NUM_PERMUTATIONS)]), False


def _separate(
    values: NDArray[np.float64], labels: NDArray[np.bool_], spread: float
) -> tuple[Float[NDArray[np.float64], "shuffles features"], Float[NDArray[np.float64], "shuffles features"]]:
    """Return the AUC of every feature under each set of labels, and what features are ranked by."""
    aucs = _aucs(values, labels)
    is_positive = labels.astype(np.float64)
    num_positive = is_positive.sum(1, keepdims=True)
    num_negative = labels.shape[1] - num_positive
    sums, squares = is_positive @ values.T, is_positive @ np.square(values).T
    positive, negative = sums / num_positive, (values.sum(1) - sums) / num_negative
    within = squares - num_positive * positive**2
    within += (np.square(values).sum(1) - squares) - num_negative * negative**2
    deviation = np.sqrt(np.maximum(within, 0) / max(labels.shape[1] - 2, 1))
    size = np.abs(positive - negative) / (deviation + spread)
    return aucs, np.abs(2 * aucs - 1) + _TIE_BREAK * size / (1 + size)


def _spread(blocks: Iterable[NDArray[np.float64]]) -> float:
    """Return what is added to every deviation, so that a feature that hardly moves does not look certain."""
    return float(np.median(np.concatenate([block.std(1) for block in blocks]))) + 1e-12


def _aucs(values: NDArray[np.float64], labels: NDArray[np.bool_]) -> Float[NDArray[np.float64], "shuffles features"]:
    num_positive = labels.sum(1, keepdims=True)
    num_negative = labels.shape[1] - num_positive
    rank_sums = labels.astype(np.float64) @ _ranks(values).T
    aucs: NDArray[np.float64] = (rank_sums - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)
    return aucs


def _ranks(values: NDArray[np.float64]) -> Float[NDArray[np.float64], "features texts"]:
    """Return each text's rank under each feature from 1 on, equal ones sharing the mean of theirs."""
    rows = torch.from_numpy(np.ascontiguousarray(values))
    ordered = rows.sort(dim=1).values
    below, up_to = torch.searchsorted(ordered, rows), torch.searchsorted(ordered, rows, right=True)
    ranks: NDArray[np.float64] = ((below + up_to + 1).double() / 2).numpy()
    return ranks

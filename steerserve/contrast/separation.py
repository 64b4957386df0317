"""Which features tell two sets of texts apart, and whether that is more than chance. Knows only numbers.

With thousands of features and a few texts, some feature always separates them. So every result is compared with that on
held-out texts, and with that for shuffled labels.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from steerserve.core.observer import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jaxtyping import Bool, Float, Int
    from numpy.typing import NDArray

MAX_FOLDS = 5
"""Most folds that the texts are divided into."""
_MAX_REPEATS = 10
_REPEATED_TEXTS = 200
"""Number of held-out texts after which no further folds are drawn: few texts need several draws, many do not."""
_NUM_PERMUTATIONS = 500
_BLOCK_VALUES = 1 << 21
"""Numbers in one of about ten arrays that are computed at once: 16 MB each."""
_TIE_BREAK = 1e-3
"""Weight of the size of the difference beside the AUC, in which many features are equal if there are few texts."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A feature, and how well it tells the sets apart."""

    feature: int
    """Index of the feature."""
    auc: float
    """Probability that it is more active on a text of the first set than on one of the second; ties count half."""
    held_out_auc: float
    """Mean AUC on held-out texts of the features that had this rank on the others; .5 is chance."""
    p_value: float
    """Share of shuffled labels for which any feature separates as well."""
    positive_mean: float
    """Mean over the first set of its largest activation on a text."""
    negative_mean: float
    """Mean over the second set of its largest activation on a text."""

    @property
    def mean_difference(self) -> float:
        """Difference of the two means."""
        return self.positive_mean - self.negative_mean


def rank_features(
    acts: Float[NDArray[np.float32], "texts features"],
    num_positive: int,
    limit: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Candidate]:
    """Return the features that separate the first `num_positive` texts from the others, the best first.

    Beside `acts` it needs a fixed amount of memory and a few numbers for each feature. `should_stop` is called often.

    Source: AUC as the Mann-Whitney statistic; the studentised difference as in SAM (Tusher et al. 2001); p-values by
    the largest statistic over all features (Westfall and Young 1993).

    Raises:
        StoppedError: `should_stop` returned true.
    """
    varying = np.flatnonzero(np.ptp(acts, axis=0) > 0)
    labels = np.arange(len(acts)) < num_positive
    if not len(varying):
        return []
    table = _Table(acts, varying, should_stop)
    spread = _spread(table.blocks(len(acts)))
    aucs, statistics = _separate_all(table, labels, spread)
    order = np.argsort(-statistics, kind="stable")[:limit]
    held_out = _held_out_aucs(table, labels, len(order))
    p_values = _p_values(table, labels, statistics[order], spread)
    best = table.rows(order)
    return [
        Candidate(
            feature=int(varying[index]),
            auc=float(aucs[index]),
            held_out_auc=float(held_out[rank]),
            p_value=float(p_values[rank]),
            positive_mean=float(best[rank, labels].mean()),
            negative_mean=float(best[rank, ~labels].mean()),
        )
        for rank, index in enumerate(order)
    ]


def smallest_p_value(num_positive: int, num_negative: int) -> float:
    """Return the least p-value that two sets of these sizes allow."""
    num_arrangements = math.comb(num_positive + num_negative, num_positive)
    if num_arrangements > _NUM_PERMUTATIONS:
        return 1 / (_NUM_PERMUTATIONS + 1)
    # For sets of one size, swapping all labels separates as well.
    return (2 if num_positive == num_negative else 1) / num_arrangements


def held_out_projection(x: Float[NDArray[np.float64], "texts width"], num_positive: int) -> float:
    """Return the mean AUC on held-out texts of the projection on the difference of the other texts' means."""
    labels = np.arange(len(x)) < num_positive
    aucs = []
    for held_out in folds(labels):
        rest = ~held_out
        direction = x[rest & labels].mean(0) - x[rest & ~labels].mean(0)
        aucs.append(_aucs((x[held_out] @ direction)[None], labels[held_out][None])[0, 0])
    return float(np.mean(aucs))


def folds(labels: Bool[NDArray[np.bool_], " texts"]) -> Iterator[Bool[NDArray[np.bool_], " texts"]]:
    """Yield masks of texts to hold out, each with texts of both labels; several draws, the same at every call."""
    generator = np.random.default_rng(0)
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    num_folds = min(MAX_FOLDS, len(positive), len(negative))
    for _ in range(max(1, min(_MAX_REPEATS, _REPEATED_TEXTS // len(labels)))):
        shuffled = [generator.permutation(positive), generator.permutation(negative)]
        for fold in range(num_folds):
            held_out = np.zeros(len(labels), dtype=bool)
            for texts in shuffled:
                held_out[texts[fold::num_folds]] = True
            yield held_out


@dataclass(frozen=True, slots=True)
class _Table:
    """Activations of the features that vary at all, given out in float64 some at a time."""

    acts: Float[NDArray[np.float32], "texts features"]
    varying: Int[NDArray[np.int64], " varying"]
    should_stop: Callable[[], bool]

    def rows(self, indexes: Int[NDArray[np.int64], " chosen"]) -> Float[NDArray[np.float64], "chosen texts"]:
        """Return the activations of some of the varying features."""
        return np.ascontiguousarray(self.acts[:, self.varying[indexes]].T, dtype=np.float64)

    def blocks(self, num_values: int) -> Iterator[Float[NDArray[np.float64], "chosen texts"]]:
        """Yield all rows in order, in blocks of a size for which `num_values` numbers a row fit into memory.

        Raises:
            StoppedError: `should_stop` returned true.
        """
        size = max(1, _BLOCK_VALUES // num_values)
        for start in range(0, len(self.varying), size):
            if self.should_stop():
                message = "The ranking was stopped."
                raise StoppedError(message)
            yield self.rows(np.arange(start, min(start + size, len(self.varying))))


def _held_out_aucs(
    table: _Table, labels: Bool[NDArray[np.bool_], " texts"], num_ranks: int
) -> Float[NDArray[np.float64], " ranks"]:
    results = []
    for held_out in folds(labels):
        rest = ~held_out
        spread = _spread(block[:, rest] for block in table.blocks(len(labels)))
        aucs, statistics = _separate_all(table, labels, spread, rest)
        best = np.argsort(-statistics, kind="stable")[:num_ranks]
        tested = _aucs(table.rows(best)[:, held_out], labels[held_out][None])[0]
        # A feature that marked the second set on the other texts should mark it here too.
        results.append(np.where(aucs[best] >= 0.5, tested, 1 - tested))  # noqa: PLR2004 chance
    means: NDArray[np.float64] = np.mean(results, axis=0)
    return means


def _separate_all(
    table: _Table,
    labels: Bool[NDArray[np.bool_], " texts"],
    spread: float,
    texts: Bool[NDArray[np.bool_], " texts"] | None = None,
) -> tuple[Float[NDArray[np.float64], " varying"], Float[NDArray[np.float64], " varying"]]:
    """Return AUC and ranking statistic of every varying feature on some texts, all if None."""
    kept = labels[None] if texts is None else labels[texts][None]
    blocks = [
        _separate(block if texts is None else block[:, texts], kept, spread) for block in table.blocks(len(labels))
    ]
    return np.concatenate([aucs[0] for aucs, _ in blocks]), np.concatenate([statistics[0] for _, statistics in blocks])


def _p_values(
    table: _Table, labels: NDArray[np.bool_], observed: NDArray[np.float64], spread: float
) -> Float[NDArray[np.float64], " candidates"]:
    shuffled, has_all = _shuffled(labels)
    largest = np.zeros(len(shuffled))
    for block in table.blocks(max(len(shuffled), len(labels))):
        _, statistics = _separate(block, shuffled, spread)
        largest = np.maximum(largest, statistics.max(1))
    reached = (largest[:, None] >= observed - 1e-9).sum(0)
    # The given labels count as one shuffle, unless they are among the shuffles.
    extra = 0 if has_all else 1
    p_values: NDArray[np.float64] = (reached + extra) / (len(shuffled) + extra)
    return p_values


def _shuffled(labels: NDArray[np.bool_]) -> tuple[Bool[NDArray[np.bool_], "shuffles texts"], bool]:
    """Return all arrangements of the labels if they are few, otherwise a sample; and whether these are all."""
    num_texts, num_positive = len(labels), int(labels.sum())
    if math.comb(num_texts, num_positive) <= _NUM_PERMUTATIONS:
        chosen = list(itertools.combinations(range(num_texts), num_positive))
        arrangements = np.zeros((len(chosen), num_texts), dtype=bool)
        arrangements[np.arange(len(chosen))[:, None], np.array(chosen)] = True
        return arrangements, True
    generator = np.random.default_rng(0)
    return np.stack([generator.permutation(labels) for _ in range(_NUM_PERMUTATIONS)]), False


def _separate(
    values: NDArray[np.float64], labels: NDArray[np.bool_], spread: float
) -> tuple[Float[NDArray[np.float64], "shuffles features"], Float[NDArray[np.float64], "shuffles features"]]:
    """Return AUC and ranking statistic of every feature for each set of labels."""
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
    """Return the constant that is added to every deviation, so that nearly constant features do not rank first."""
    return float(np.median(np.concatenate([block.std(1) for block in blocks]))) + 1e-12


def _aucs(values: NDArray[np.float64], labels: NDArray[np.bool_]) -> Float[NDArray[np.float64], "shuffles features"]:
    from scipy import stats  # noqa: PLC0415 takes half a second, and only contrasts need it

    num_positive = labels.sum(1, keepdims=True)
    num_negative = labels.shape[1] - num_positive
    rank_sums = labels.astype(np.float64) @ stats.rankdata(values, axis=1).T
    aucs: NDArray[np.float64] = (rank_sums - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)
    return aucs

"""The numbers of a sample, none of which needs a judge. What the model must be asked, `scoring` asks.

Source: api.md section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.compare.arms import EditedFeatures

NUM_SIDE_EFFECTS = 8
_REPEATED = 3
_DISTINCT = 2


@dataclass(frozen=True, slots=True)
class Reading:
    """What passes of the model over a text gave, in nats a token; None where the text has no token."""

    surprise: float | None
    """Mean negative log-likelihood under the unsteered model, on the arm's own prompt."""
    kl: float | None
    kl_p95: float | None
    """KL(steered || unsteered), mean and 95th percentile over the generated positions."""
    relevance: float | None
    """How much likelier the arm's prompt makes the text than an empty one, under the unsteered model."""
    means: Mapping[str, Float[Tensor, " d_sae"]] = field(default_factory=dict)
    """Mean activation of every feature of each dictionary over the text, where any token of it counts."""
    by_token: Mapping[str, Float[Tensor, "tokens features"]] = field(default_factory=dict)
    """Activations of the features that were asked for, token by token; NaN at a token that does not count."""


class Shift(NamedTuple):
    """How much more active a feature is in a text than in the first arm's."""

    dictionary: str
    feature: int
    change: float


def repetition(token_ids: Sequence[int]) -> float:
    """Return the share of 3-grams that were there before; over 0.2 a text reads as broken."""
    grams = _grams(token_ids, _REPEATED)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_2(token_ids: Sequence[int]) -> float:
    """Return the number of different 2-grams over that of all; 1 for a text without any."""
    grams = _grams(token_ids, _DISTINCT)
    return len(set(grams)) / len(grams) if grams else 1.0


def first_divergence(token_ids: Sequence[int], first: Sequence[int]) -> int | None:
    """Return the index of the first token that differs, the end of a text being one; None for equal texts."""
    for place, (one, other) in enumerate(zip(token_ids, first, strict=False)):
        if one != other:
            return place
    return None if len(token_ids) == len(first) else min(len(token_ids), len(first))


def edited_means(reading: Reading, edited: Sequence[EditedFeatures]) -> dict[str, dict[int, float | None]]:
    """Return the mean activation of the edited features, by dictionary; None where no token counts."""
    found: dict[str, dict[int, float | None]] = {}
    for one in edited:
        means = reading.means.get(one.dictionary.id)
        found[one.dictionary.id] = {
            feature: None if means is None else float(means[feature]) for feature in one.features
        }
    return found


def edited_by_token(
    reading: Reading, edited: Sequence[EditedFeatures], num_tokens: int
) -> dict[str, dict[int, list[float | None]]]:
    """Return the activation of each edited feature at every token, by dictionary; None where a token does not count."""
    found: dict[str, dict[int, list[float | None]]] = {}
    for one in edited:
        acts = reading.by_token.get(one.dictionary.id)
        columns = [[None] * num_tokens] * len(one.features) if acts is None else acts.T.tolist()
        found[one.dictionary.id] = {
            feature: [None if act is None or math.isnan(act) else act for act in column]
            for feature, column in zip(one.features, columns, strict=True)
        }
    return found


def side_effects(reading: Reading, first: Reading, edited: Sequence[EditedFeatures]) -> list[Shift]:
    """Return the largest shifts of features that nobody edits, against the first arm's same sample."""
    shifts: list[Shift] = []
    for one in edited:
        name = one.dictionary.id
        mine, other = reading.means.get(name), first.means.get(name)
        if mine is None or other is None:
            continue
        change = mine - other
        change[list(one.features)] = 0.0
        top = change.abs().topk(min(NUM_SIDE_EFFECTS, len(change))).indices.tolist()
        shifts += [Shift(name, feature, float(change[feature])) for feature in top]
    shifts.sort(key=lambda shift: -abs(shift.change))
    return [shift for shift in shifts if shift.change][:NUM_SIDE_EFFECTS]


def _grams(token_ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(token_ids[start : start + size]) for start in range(len(token_ids) - size + 1)]

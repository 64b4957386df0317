"""The numbers of a sample, as docs/comparing.md defines them; `scoring` makes those that need the model."""

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


@dataclass(frozen=True, slots=True)
class SampleScore:
    """What the model says of a generated text, in nats a token; None if the text has no token."""

    surprise: float | None
    """Mean negative log-likelihood under the unsteered model, after the arm's own prompt."""
    kl: float | None
    """Mean KL(steered || unsteered) over the positions of the generated tokens."""
    kl_p95: float | None
    """95th percentile of that divergence."""
    relevance: float | None
    """How much likelier the arm's prompt makes the text than an empty prompt does, under the unsteered model."""
    means: Mapping[str, Float[Tensor, " d_sae"]] = field(default_factory=dict)
    """Each dictionary's mean activations over the tokens that count; a dictionary without such tokens is absent."""
    by_token: Mapping[str, Float[Tensor, "tokens features"]] = field(default_factory=dict)
    """Each dictionary's activations of the requested features at every token; NaN at a token that does not count."""


class Shift(NamedTuple):
    """How much more active a feature is in a text than in the first arm's."""

    dictionary: str
    feature: int
    change: float


def repetition(token_ids: Sequence[int]) -> float:
    """Return the share of 3-grams that repeat an earlier one; over 0.2 a text reads as broken."""
    grams = _grams(token_ids, 3)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_2(token_ids: Sequence[int]) -> float:
    """Return the number of different 2-grams over that of all; 1 for a text without 2-grams."""
    grams = _grams(token_ids, 2)
    return len(set(grams)) / len(grams) if grams else 1.0


def first_divergence(token_ids: Sequence[int], first_ids: Sequence[int]) -> int | None:
    """Return the index of the first token that differs, counting the end of a text; None for equal texts."""
    for index, (token_id, first_id) in enumerate(zip(token_ids, first_ids, strict=False)):
        if token_id != first_id:
            return index
    return None if len(token_ids) == len(first_ids) else min(len(token_ids), len(first_ids))


def edited_means(score: SampleScore, edited: Sequence[EditedFeatures]) -> dict[str, dict[int, float | None]]:
    """Return the mean activation of the edited features, by dictionary; None if no token counts."""
    result: dict[str, dict[int, float | None]] = {}
    for part in edited:
        means = score.means.get(part.dictionary.id)
        result[part.dictionary.id] = {
            feature: None if means is None else float(means[feature]) for feature in part.features
        }
    return result


def edited_by_token(
    score: SampleScore, edited: Sequence[EditedFeatures], num_tokens: int
) -> dict[str, dict[int, list[float | None]]]:
    """Return the activation of each edited feature at every token, by dictionary; None if a token does not count."""
    result: dict[str, dict[int, list[float | None]]] = {}
    for part in edited:
        acts = score.by_token.get(part.dictionary.id)
        columns = [[None] * num_tokens] * len(part.features) if acts is None else acts.T.tolist()
        result[part.dictionary.id] = {
            feature: [None if act is None or math.isnan(act) else act for act in column]
            for feature, column in zip(part.features, columns, strict=True)
        }
    return result


def side_effects(score: SampleScore, first: SampleScore, edited: Sequence[EditedFeatures]) -> list[Shift]:
    """Return the largest shifts of features that no arm edits, against the first arm's sample of the same index."""
    shifts: list[Shift] = []
    for part in edited:
        name = part.dictionary.id
        means, first_means = score.means.get(name), first.means.get(name)
        if means is None or first_means is None:
            continue
        change = means - first_means
        change[list(part.features)] = 0.0
        top = change.abs().topk(min(NUM_SIDE_EFFECTS, len(change))).indices.tolist()
        shifts += [Shift(name, feature, float(change[feature])) for feature in top]
    shifts.sort(key=lambda shift: -abs(shift.change))
    return [shift for shift in shifts if shift.change][:NUM_SIDE_EFFECTS]


def _grams(token_ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(token_ids[start : start + size]) for start in range(len(token_ids) - size + 1)]

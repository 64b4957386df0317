"""Searches the scale at which a direction changes the model's output by one dose.

The divergence grows with a power of the scale, so that one measurement close to a dose is enough to know it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from steerserve.dose.percentile import percentile, spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.dose.pushed_text import PushedText
    from steerserve.engine.background import Pieces

DOSE_NATS = 1.0
DOSE_SHARE = 0.95
"""At one dose, this share of tokens diverges by less than `DOSE_NATS`. Source: docs/steering.md, section Doses."""
TYPICAL_PART = 0.27
"""Part of the median norm at a hook point that is about one dose. Source: docs/steering.md, section Doses."""
TYPICAL_EXPONENT = 2.4
"""Power of the scale with which KL grows, measured on the default model from 0.16 to 0.31 of the median norm."""
MAX_STRENGTH = 1e6
_TRUSTED = 0.5
"""Largest distance from one dose, in log KL, over which the power law is relied on."""
_UNEVEN = 0.16
"""Standard deviation of the percentile's logarithm over other texts above which further texts are measured."""
_LARGEST_STEP = math.log(8)
_LEAST_NATS, _MOST_NATS = 1e-8, 1e8
_EXPONENTS = (0.7, 6.0)
_MAX_ROUNDS = 8
_NUM_RANDOM = 2
_SEED = 7


@dataclass(slots=True)
class DoseSearch:
    """Search for one direction's dose: needs measurements at `strength` until it has ended."""

    strength: float
    """Scale at which the next measurement is needed."""
    exponent: float = TYPICAL_EXPONENT
    """Power of the scale with which the divergence grows, by the measurements so far."""
    dose: float | None = None
    """The dose; None until it is known."""
    num_rounds: int = 0
    """Number of measurements so far."""
    _points: list[tuple[float, float]] = field(default_factory=list)
    """Logarithms of scales, each with the logarithm of the divergence in units of a dose."""

    @property
    def has_ended(self) -> bool:
        """Whether the dose is known, or the search has failed."""
        return self.dose is not None or self.num_rounds >= _MAX_ROUNDS or self.strength > MAX_STRENGTH

    def add_measurement(self, nats: float) -> None:
        """Take the divergence that was measured at `strength`."""
        point = math.log(self.strength), math.log(min(max(nats, _LEAST_NATS), _MOST_NATS) / DOSE_NATS)
        if self._points:
            self.exponent = _slope(self._points[-1], point) or self.exponent
        self._points.append(point)
        self.num_rounds += 1
        if abs(point[1]) <= _TRUSTED:
            dose = math.exp(point[0] - point[1] / self.exponent)
            self.dose = dose if dose <= MAX_STRENGTH else None
        else:
            self.strength = math.exp(self._next_log_strength(point))

    def correct(self, nats: float) -> None:
        """Correct a dose that is known by a measurement at `strength` on more text."""
        dose = self.strength * (min(max(nats, _LEAST_NATS), _MOST_NATS) / DOSE_NATS) ** (-1 / self.exponent)
        self.dose = min(dose, MAX_STRENGTH)

    def _next_log_strength(self, last: tuple[float, float]) -> float:
        below = max((point[0] for point in self._points if point[1] < 0), default=None)
        above = min((point[0] for point in self._points if point[1] > 0), default=None)
        step = min(max(-last[1] / self.exponent, -_LARGEST_STEP), _LARGEST_STEP)
        proposed = last[0] + step
        if below is None or above is None or below < proposed < above:
            return proposed
        return (below + above) / 2


def find_doses(
    text: PushedText,
    directions: Mapping[str, Float[Tensor, "pushes width"]],
    searches: Sequence[DoseSearch],
    more: PushedText | None = None,
) -> Pieces[list[float | None]]:
    """Return the scale of one dose of each direction; None if no scale is one.

    Args:
        text: Texts on which all are measured.
        directions: Directions by hook point.
        searches: Searches that begin at the expected doses.
        more: Further texts for directions whose effect in `text` is large at few tokens.
    """
    measured: dict[int, Float[Tensor, " tokens"]] = {}
    while unfinished := [index for index, search in enumerate(searches) if not search.has_ended]:
        rows = yield from text.divergences(_pushes(directions, searches, unfinished))
        for index, row, nats in zip(unfinished, rows, _percentiles(rows), strict=True):
            measured[index] = row
            searches[index].add_measurement(nats)
    dosed = [index for index in measured if searches[index].dose is not None]
    if more is not None and dosed:
        divergences = torch.stack([measured[index] for index in dosed])
        spreads = spread(divergences, text.edited.nonzero()[:, 0], DOSE_SHARE).tolist()
        uneven = [index for index, deviation in zip(dosed, spreads, strict=True) if deviation > _UNEVEN]
        if uneven:
            rows = yield from more.divergences(_pushes(directions, searches, uneven))
            both = torch.cat([torch.stack([measured[index] for index in uneven]), rows], dim=1)
            for index, nats in zip(uneven, _percentiles(both), strict=True):
                searches[index].correct(nats)
    return [search.dose for search in searches]


def _pushes(
    directions: Mapping[str, Float[Tensor, "pushes width"]], searches: Sequence[DoseSearch], indexes: list[int]
) -> dict[str, Float[Tensor, "chosen width"]]:
    strengths = torch.tensor([searches[index].strength for index in indexes])
    return {name: rows[indexes] * strengths.to(rows)[:, None] for name, rows in directions.items()}


def usual_dose(text: PushedText, hook_name: str, width: int, guess: float) -> Pieces[float]:
    """Return the norm of one dose of a few random directions at a hook point; `guess` is where the search begins."""
    generator = torch.Generator().manual_seed(_SEED)
    directions = torch.nn.functional.normalize(torch.randn(_NUM_RANDOM, width, generator=generator), dim=-1)
    searches = [DoseSearch(guess) for _ in directions]
    doses = yield from find_doses(text, {hook_name: directions.to(text.edited.device)}, searches)
    logs = [math.log(dose) for dose in doses if dose is not None]
    return math.exp(sum(logs) / len(logs)) if logs else guess


def _percentiles(nats: Float[Tensor, "pushes tokens"]) -> list[float]:
    percentiles: list[float] = percentile(nats.clamp(max=_MOST_NATS), DOSE_SHARE).tolist()
    return percentiles


def _slope(first: tuple[float, float], second: tuple[float, float]) -> float | None:
    """Return the exponent by two measurements; None if it is not plausible."""
    slope = (second[1] - first[1]) / (second[0] - first[0]) if second[0] != first[0] else 0.0
    return slope if _EXPONENTS[0] <= slope <= _EXPONENTS[1] else None

"""How far to push: the strength at which the output is changed by just one dose.

The divergence grows with a power of the strength, so that one measurement near the mark is enough to know the dose.
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
"""A dose is where this share of tokens diverges by less than so many nats. Source: api.md section 2.2."""
TYPICAL_PART = 0.27
"""Of the median norm: about one dose. Source: training.md."""
TYPICAL_EXPONENT = 2.4
"""KL grows with this power of the strength. Measured on the default model from 0.16 to 0.31 of the median norm."""
MAX_STRENGTH = 1e6
_TRUSTED = 0.5
"""So far from the mark, in log KL, the power law is relied on."""
_UNEVEN = 0.16
"""Where the percentile would vary by more than this with other texts (its logarithm), more texts are measured on."""
_LARGEST_STEP = math.log(8)
_LEAST_NATS, _MOST_NATS = 1e-8, 1e8
_EXPONENTS = (0.7, 6.0)
_MAX_ROUNDS = 8
_NUM_RANDOM = 2
_SEED = 7


@dataclass(slots=True)
class DoseSearch:
    """The search for one direction's dose: asks for a measurement at `strength` until it knows."""

    strength: float
    exponent: float = TYPICAL_EXPONENT
    dose: float | None = None
    num_rounds: int = 0
    _points: list[tuple[float, float]] = field(default_factory=list)
    """Logarithms of strengths, with those of what they gave in units of a dose."""

    @property
    def has_ended(self) -> bool:
        """Whether the dose is known, or was not found."""
        return self.dose is not None or self.num_rounds >= _MAX_ROUNDS or self.strength > MAX_STRENGTH

    def tell(self, nats: float) -> None:
        """Take what was measured at `strength`."""
        here = math.log(self.strength), math.log(min(max(nats, _LEAST_NATS), _MOST_NATS) / DOSE_NATS)
        if self._points:
            self.exponent = _slope(self._points[-1], here) or self.exponent
        self._points.append(here)
        self.num_rounds += 1
        if abs(here[1]) <= _TRUSTED:
            dose = math.exp(here[0] - here[1] / self.exponent)
            self.dose = dose if dose <= MAX_STRENGTH else None
        else:
            self.strength = math.exp(self._next(here))

    def correct(self, nats: float) -> None:
        """Take what was measured at `strength` once more, on more text, where the dose is known already."""
        dose = self.strength * (min(max(nats, _LEAST_NATS), _MOST_NATS) / DOSE_NATS) ** (-1 / self.exponent)
        self.dose = min(dose, MAX_STRENGTH)

    def _next(self, here: tuple[float, float]) -> float:
        below = max((point[0] for point in self._points if point[1] < 0), default=None)
        above = min((point[0] for point in self._points if point[1] > 0), default=None)
        step = min(max(-here[1] / self.exponent, -_LARGEST_STEP), _LARGEST_STEP)
        wanted = here[0] + step
        if below is None or above is None or below < wanted < above:
            return wanted
        return (below + above) / 2


def find_doses(
    text: PushedText,
    directions: Mapping[str, Float[Tensor, "pushes width"]],
    searches: Sequence[DoseSearch],
    more: PushedText | None = None,
) -> Pieces[list[float | None]]:
    """Return the strength of one dose of each direction, None where no strength gives one.

    Args:
        text: What they are measured on.
        directions: By hook point.
        searches: Where to begin with each.
        more: What those are measured on too that are felt in few places of `text`.
    """
    measured: dict[int, Float[Tensor, " tokens"]] = {}
    while open_places := [place for place, search in enumerate(searches) if not search.has_ended]:
        rows = yield from text.divergences(_pushes(directions, searches, open_places))
        for place, row, nats in zip(open_places, rows, _percentiles(rows), strict=True):
            measured[place] = row
            searches[place].tell(nats)
    dosed = [place for place in measured if searches[place].dose is not None]
    if more is not None and dosed:
        some = torch.stack([measured[place] for place in dosed])
        spreads = spread(some, text.edited.nonzero()[:, 0], DOSE_SHARE).tolist()
        uneven = [place for place, one in zip(dosed, spreads, strict=True) if one > _UNEVEN]
        if uneven:
            rows = yield from more.divergences(_pushes(directions, searches, uneven))
            both = torch.cat([torch.stack([measured[place] for place in uneven]), rows], dim=1)
            for place, nats in zip(uneven, _percentiles(both), strict=True):
                searches[place].correct(nats)
    return [search.dose for search in searches]


def _pushes(
    directions: Mapping[str, Float[Tensor, "pushes width"]], searches: Sequence[DoseSearch], places: list[int]
) -> dict[str, Float[Tensor, "some width"]]:
    strengths = torch.tensor([searches[place].strength for place in places])
    return {name: some[places] * strengths.to(some)[:, None] for name, some in directions.items()}


def usual_dose(text: PushedText, hook_name: str, width: int, guess: float) -> Pieces[float]:
    """Return the norm of one dose of a few random directions at a hook point; `guess` is one to begin with."""
    generator = torch.Generator().manual_seed(_SEED)
    directions = torch.nn.functional.normalize(torch.randn(_NUM_RANDOM, width, generator=generator), dim=-1)
    searches = [DoseSearch(guess) for _ in directions]
    doses = yield from find_doses(text, {hook_name: directions.to(text.edited.device)}, searches)
    found = [math.log(dose) for dose in doses if dose is not None]
    return math.exp(sum(found) / len(found)) if found else guess


def _percentiles(nats: Float[Tensor, "pushes tokens"]) -> list[float]:
    found: list[float] = percentile(nats.clamp(max=_MOST_NATS), DOSE_SHARE).tolist()
    return found


def _slope(one: tuple[float, float], two: tuple[float, float]) -> float | None:
    """Return the exponent that two measurements show, None where they show none that can be."""
    slope = (two[1] - one[1]) / (two[0] - one[0]) if two[0] != one[0] else 0.0
    return slope if _EXPONENTS[0] <= slope <= _EXPONENTS[1] else None

"""Charts of means with intervals, as coordinates for the report's SVG template. Knows numbers, not experiments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 218, 140
_TICKS = 4
_MARGIN = 0.06
"""Share of the range that is left free above and below."""


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """A mean at a dose, with its interval if it has one."""

    x: float
    y: float
    low: float | None
    high: float | None
    name: str


def chart(
    title: str, unit: str, points: Sequence[ChartPoint], controls: Sequence[ChartPoint], limit: float | None
) -> dict[str, Any]:
    """Return what the template draws: two curves with intervals, ticks, and a line at `limit` if values come near it.

    Args:
        title: Title of the chart.
        unit: What the horizontal axis counts.
        points: Points of the steered arms, by rising x.
        controls: Points of their control arms, on the same axes.
        limit: A value that is marked, if any.
    """
    every = [*points, *controls]
    ys = [value for point in every for value in (point.y, point.low, point.high) if value is not None]
    x_axis = _Axis(min(point.x for point in every), max(point.x for point in every), WIDTH, flips=False)
    top = max(ys)
    shows_limit = limit is not None and top > limit / 2
    low = min(0.0, *ys) if min(ys) < (top - min(ys)) or min(ys) < 0 else min(ys)
    y_axis = _Axis(low, max(top, limit) if shows_limit and limit is not None else top, HEIGHT, flips=True)
    return {
        "title": title,
        "unit": unit,
        "lines": [
            {"kind": kind, "path": _path(series, x_axis, y_axis), "marks": [_mark(p, x_axis, y_axis) for p in series]}
            for kind, series in (("control", controls), ("steered", points))
            if series
        ],
        "x_ticks": [(x_axis.at(x), f"{x:g}") for x in _x_ticks(every)],
        "y_ticks": [(y_axis.at(y), f"{y:g}") for y in y_axis.ticks()],
        "limit": y_axis.at(limit) if shows_limit and limit is not None else None,
    }


class _Axis:
    """One side of the chart: from numbers to coordinates."""

    def __init__(self, low: float, high: float, length: int, *, flips: bool) -> None:
        margin = _MARGIN * ((high - low) or abs(high) or 1.0)
        stands_on_zero = flips and low == 0
        self._low, self._high = low if stands_on_zero else low - margin, high + margin
        self._length, self._flips = length, flips

    def at(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round((1 - share if self._flips else share) * self._length, 1)

    def ticks(self) -> list[float]:
        """Return round numbers within the range."""
        step = _round_step((self._high - self._low) / _TICKS)
        first = math.ceil(self._low / step)
        return [round(index * step, 10) for index in range(first, math.floor(self._high / step) + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def _x_ticks(points: Sequence[ChartPoint]) -> list[float]:
    """Return the doses, or every n-th of them if they are many."""
    doses = sorted({point.x for point in points})
    return doses[:: math.ceil(len(doses) / 8)]


def _path(points: Sequence[ChartPoint], x_axis: _Axis, y_axis: _Axis) -> str:
    return " ".join(f"{x_axis.at(point.x)},{y_axis.at(point.y)}" for point in points)


def _mark(point: ChartPoint, x_axis: _Axis, y_axis: _Axis) -> dict[str, Any]:
    has_interval = point.low is not None and point.high is not None
    interval = f" [{point.low:.3g}, {point.high:.3g}]" if has_interval else ""
    return {
        "x": x_axis.at(point.x),
        "y": y_axis.at(point.y),
        "low": y_axis.at(point.low) if point.low is not None else None,
        "high": y_axis.at(point.high) if point.high is not None else None,
        "label": f"{point.name}: {point.y:.3g}{interval}",
    }

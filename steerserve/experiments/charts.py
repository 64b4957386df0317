"""Curves with intervals as SVG elements, for the report's template to draw. Knows numbers, not experiments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 218, 140
_TICKS = 4
_ROOM = 0.06
"""Of the range, left free above and below."""


@dataclass(frozen=True, slots=True)
class Point:
    """A mean at a dose, with its interval where there is one."""

    x: float
    y: float
    low: float | None
    high: float | None
    name: str


def chart(
    title: str, unit: str, points: Sequence[Point], controls: Sequence[Point], limit: float | None
) -> dict[str, Any]:
    """Return what the template draws: two lines with their intervals, ticks, and a line at `limit` where that is near.

    Args:
        title: Above the chart.
        unit: What the horizontal axis counts.
        points: By rising x.
        controls: Of the same scale.
        limit: A value worth seeing.
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
    """Numbers to places along one side of the chart."""

    def __init__(self, low: float, high: float, length: int, *, flips: bool) -> None:
        room = _ROOM * ((high - low) or abs(high) or 1.0)
        stands_on_zero = flips and low == 0
        self._low, self._high = low if stands_on_zero else low - room, high + room
        self._length, self._flips = length, flips

    def at(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round((1 - share if self._flips else share) * self._length, 1)

    def ticks(self) -> list[float]:
        """Return round numbers within the range."""
        step = _round_step((self._high - self._low) / _TICKS)
        first = math.ceil(self._low / step)
        return [round(place * step, 10) for place in range(first, math.floor(self._high / step) + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def _x_ticks(points: Sequence[Point]) -> list[float]:
    """Return the doses themselves, or some of them where there are many."""
    doses = sorted({point.x for point in points})
    return doses[:: math.ceil(len(doses) / 8)]


def _path(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> str:
    return " ".join(f"{x_axis.at(point.x)},{y_axis.at(point.y)}" for point in points)


def _mark(point: Point, x_axis: _Axis, y_axis: _Axis) -> dict[str, Any]:
    has_interval = point.low is not None and point.high is not None
    interval = f" [{point.low:.3g}, {point.high:.3g}]" if has_interval else ""
    return {
        "x": x_axis.at(point.x),
        "y": y_axis.at(point.y),
        "low": y_axis.at(point.low) if point.low is not None else None,
        "high": y_axis.at(point.high) if point.high is not None else None,
        "label": f"{point.name}: {point.y:.3g}{interval}",
    }

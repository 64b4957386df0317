"""A dictionary's report as one page of HTML that needs nothing else: figures, curves, a histogram."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 420, 150
_CURVES = (
    ("explained_variance", "Explained variance (batch)"),
    ("loss", "Loss (batch, activations scaled)"),
    ("l0", "L0: active features a token (batch)"),
    ("dead_fraction", "Dead share (within the window)"),
)
_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def render_report(report: Mapping[str, Any]) -> str:
    """Write the page of a report, as `report.json` holds it."""
    history = report.get("history") or {}
    points = [{**point, "loss": (point.get("losses") or {}).get("overall")} for point in history.get("points", ())]
    curves = [
        _curve(title, [(point["step"], point[name]) for point in points if point.get(name) is not None])
        for name, title in _CURVES
    ]
    return _environment.get_template("report_page.html.jinja").render(
        report=report,
        tables=[(title, _rows(report.get(name) or {})) for name, title in _TABLES.items()],
        curves=[curve for curve in curves if curve],
        resampled=history.get("resampled", ()),
        bars=_bars((report.get("features") or {}).get("density")),
        width=_WIDTH,
        height=_HEIGHT,
    )


_TABLES = {"heldout": "On held-out text", "features": "Features", "training": "Training", "versions": "Versions"}


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in values.items() if name != "density"]


def _text(value: Any) -> str:  # noqa: ANN401 JSON
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(_text(one) for one in value) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _curve(title: str, points: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
    """Return a polyline over the steps; the vertical range is that of the values."""
    if len(points) < 2:  # noqa: PLR2004 a line has two ends
        return None
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    first, length = steps[0], (steps[-1] - steps[0]) or 1
    places = (
        f"{(step - first) / length * _WIDTH:.1f},{_HEIGHT - (value - low) / spread * _HEIGHT:.1f}"
        for step, value in points
    )
    return {
        "title": title,
        "line": " ".join(places),
        "low": f"{low:.4g}",
        "high": f"{high:.4g}",
        "last": f"{values[-1]:.4g}",
        "steps": f"steps {first:,} to {steps[-1]:,}",
    }


def _bars(density: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the bars of the density histogram."""
    if not density:
        return []
    edges, counts = density["log10_edges"], density["counts"]
    top = max(*counts, 1)
    bar_width = _WIDTH / len(counts)
    return [
        {
            "x": round(place * bar_width, 2),
            "y": round(_HEIGHT - count / top * _HEIGHT, 2),
            "width": round(bar_width - 1, 2),
            "height": round(count / top * _HEIGHT, 2),
            "label": f"{count:,} features active on {_share(edges[place])} to {_share(edges[place + 1])} of tokens",
            "tick": _share(edges[place]) if math.isclose(edges[place], round(edges[place])) else "",
        }
        for place, count in enumerate(counts)
    ]


def _share(exponent: float) -> str:
    return f"{100 * 10**exponent:.3g}%"

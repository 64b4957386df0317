"""Renders a dictionary's report as one self-contained HTML page: figures, curves and a histogram."""

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
_LARGEST, _LARGEST_EXPONENT = 1e15, 15
_MAX_POINTS, _MAX_EVENTS, _MAX_BARS, _MAX_ROWS, _MAX_CHARS = 1000, 100, 200, 100, 2000
_FIGURES = (
    ("ce_recovered", "{:.3f}", "CE loss recovered"),
    ("explained_variance", "{:.3f}", "explained variance"),
    ("kl", "{:.3f}", "KL, nats a token"),
    ("l0", "{:.1f}", "L0"),
    ("dead_fraction", "{:.2%}", "dead"),
    ("dense_fraction", "{:.2%}", "dense"),
)
_TABLES = {"heldout": "On held-out text", "features": "Features", "training": "Training", "versions": "Versions"}
_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def render_report(report: Mapping[str, Any]) -> str:
    """Return the page of a report, as `report.json` holds it; missing or malformed parts are left out."""
    history = _mapping(report.get("history"))
    points = [_mapping(point) for point in _items(history.get("points"))[:_MAX_POINTS]]
    points = [{**point, "loss": _loss(_mapping(point.get("losses")))} for point in points]
    curves = [
        _curve(title, [(p["step"], p[name]) for p in points if _is_number(p.get("step")) and _is_number(p.get(name))])
        for name, title in _CURVES
    ]
    return _environment.get_template("report_page.html.jinja").render(
        report=report,
        figures=[(form.format(report[name]), text) for name, form, text in _FIGURES if _is_number(report.get(name))],
        tables=[(title, _rows(_mapping(report.get(name)))) for name, title in _TABLES.items()],
        curves=[curve for curve in curves if curve],
        resampled=_rows(
            {
                f"step {_mapping(event).get('step')}": _mapping(event).get("features")
                for event in _items(history.get("resampled"))[:_MAX_EVENTS]
            }
        ),
        bars=_bars(_mapping(_mapping(report.get("features")).get("density"))),
        width=_WIDTH,
        height=_HEIGHT,
    )


def _loss(losses: Mapping[str, Any]) -> object:
    return losses.get("overall", losses.get("mse_loss"))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    """Tell whether a value can be drawn; reports may come from anybody."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = [(name, value) for name, value in values.items() if name != "density"][:_MAX_ROWS]
    return [(name[:_MAX_CHARS], _text(value)[:_MAX_CHARS]) for name, value in shown]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(inner)}" for name, inner in list(value.items())[:_MAX_ROWS])
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value[:_MAX_ROWS]) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if _is_number(value) else "a large number"
    return str(value)


def _curve(title: str, points: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
    """Return a polyline over the steps; the vertical range is that of the values."""
    if len(points) < 2:  # noqa: PLR2004 a polyline has two ends
        return None
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    first, length = steps[0], (steps[-1] - steps[0]) or 1
    points_text = (
        f"{(step - first) / length * _WIDTH:.1f},{_HEIGHT - (value - low) / spread * _HEIGHT:.1f}"
        for step, value in points
    )
    return {
        "title": title,
        "points": " ".join(points_text),
        "last": f"{values[-1]:.4g}",
        "range": f"{low:.4g} to {high:.4g}, steps {first:,} to {steps[-1]:,}",
    }


def _bars(density: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the bars of the density histogram."""
    edges, counts = _items(density.get("log10_edges")), _items(density.get("counts"))
    if not 0 < len(counts) <= _MAX_BARS or len(edges) != len(counts) + 1:
        return []
    if not all(map(_is_number, [*edges, *counts])) or any(abs(edge) > _LARGEST_EXPONENT for edge in edges):
        return []
    top = max(*counts, 1)
    bar_width = _WIDTH / len(counts)
    return [
        {
            "x": round(index * bar_width, 2),
            "y": round(_HEIGHT - count / top * _HEIGHT, 2),
            "width": round(bar_width - 1, 2),
            "height": round(count / top * _HEIGHT, 2),
            "label": f"{count:,} features active on {_share(edges[index])} to {_share(edges[index + 1])} of tokens",
            "tick": _share(edges[index]) if math.isclose(edges[index], round(edges[index])) else "",
        }
        for index, count in enumerate(counts)
    ]


def _share(exponent: float) -> str:
    return f"{100 * 10**exponent:.3g}%"

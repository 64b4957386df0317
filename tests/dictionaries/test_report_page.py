"""The page of a report needs nothing else, escapes what it shows, and survives reports of any shape."""

from __future__ import annotations

import pytest

from steerserve.dictionaries.report_page import render_report

POINTS = [{"step": step, "l0": 30.0 + step, "losses": {"overall": 9.0 / step}} for step in (10, 20, 30)]


def test_a_page_shows_figures_curves_and_histogram() -> None:
    page = render_report(
        {
            "id": "res17", "ce_recovered": 0.98585, "dead_fraction": 0.0002,
            "features": {"density": {"log10_edges": [-2, -1, 0], "counts": [40, 2]}},
            "history": {"points": POINTS, "resampled": [{"step": 20, "features": 1234}]},
        }
    )  # fmt: skip
    assert "<b>0.986</b>" in page
    assert "<b>0.02%</b>" in page
    assert page.count("<polyline") == 2
    assert "1,234 at step 20" in page
    assert "40 features active on 1% to 10% of tokens" in page
    assert "src=" not in page
    assert "href=" not in page


def test_what_a_report_says_is_escaped() -> None:
    page = render_report({"id": "<script>alert(1)</script>", "training": {"sources": {"<b>": 1}}})
    assert "<script>" not in page
    assert "<b>: 1" not in page


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"id": 3, "ce_recovered": "high", "l0": True, "history": [], "features": 7, "training": None},
        {"history": {"points": [1, {"step": "x", "l0": 1}, {"step": 1, "l0": float("nan")}], "resampled": [None]}},
        {"features": {"density": {"log10_edges": [0], "counts": [1, 2]}}, "heldout": {"a": [1, {"b": None}]}},
        {"features": {"density": {"log10_edges": [10_000_000, 0], "counts": [1]}}},
        {"features": {"density": {"log10_edges": [500.0, 0], "counts": [1]}}},
        {"features": {"density": {"log10_edges": [0] * 200_001, "counts": [1] * 200_000}}},
        {
            "l0": 10**400,
            "kl": -(10**400),
            "training": {"steps": 10**5000, "sources": dict.fromkeys(map(str, range(9999)), 1)},
        },
        {"history": {"points": [{"step": step, "l0": 1} for step in range(100_000)]}},
    ],
)
def test_a_report_of_another_shape_is_shown_as_far_as_it_goes(report: dict[str, object]) -> None:
    page = render_report(report)
    assert page.startswith("<!doctype html>")
    assert len(page) < 100_000

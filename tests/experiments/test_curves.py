"""Which arms make a curve, sweeps that make them, and where points are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerserve.core.errors import ConfigError
from steerserve.experiments.charts import HEIGHT, WIDTH, ChartPoint, chart
from steerserve.experiments.curves import find_curves
from steerserve.experiments.experiment import parse_experiment
from steerserve.experiments.sweep import Sweep, sweep_file

HEAD = "name: x\nprompts: [a]\narms:\n  - name: baseline\n"


def curves(*arms: str) -> list[tuple[str, tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]]:
    text = HEAD + "".join(f"  - {arm}\n" for arm in arms)
    return [(curve.title, curve.points, curve.controls) for curve in find_curves(parse_experiment(text, file="x"))]


def test_arms_that_differ_only_in_scale_make_a_curve_with_the_baseline_at_0() -> None:
    found = curves(
        "{name: two, steering: [{feature: 3, scale: 2, unit: dose}]}",
        "{name: one, steering: [{feature: 3, scale: 1, unit: dose}]}",
        "{name: random, control_of: two}",
        "{name: other, steering: [{feature: 4, scale: 1, unit: dose}]}",
    )
    points = (("baseline", 0.0), ("one", 1.0), ("two", 2.0))
    assert found == [("add 3, doses", points, (("baseline", 0.0), ("random", 2.0)))]


def test_presets_vary_in_strength_whichever_way_they_are_written() -> None:
    found = curves("{name: half, steering: {presets: [a], strength: 0.5}}", "{name: full, preset: a}")
    assert found == [("strength of a", (("baseline", 0.0), ("half", 0.5), ("full", 1.0)), ())]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("{name: a, steering: [{feature: 3, scale: 2}]}", "{name: b, steering: [{feature: 3, scale: 2}]}"),
        ("{name: a, steering: [{feature: 3, scale: 2}]}", "{name: b, steering: [{feature: 4, scale: 1}]}"),
        ("{name: a, steering: [{feature: 3, scale: 2}]}", "{name: b, steering: [{feature: 3, scale: 1, unit: max}]}"),
        ("{name: a, system: s, steering: [{feature: 3, scale: 2}]}", "{name: b, steering: [{feature: 3, scale: 1}]}"),
        (
            "{name: a, steering: [{feature: 3, scale: 2}, {feature: 4, scale: 2}]}",
            "{name: b, steering: [{feature: 3, scale: 1}, {feature: 4, scale: 1}]}",
        ),
    ],
)
def test_what_differs_otherwise_makes_none(one: str, other: str) -> None:
    assert curves(one, other) == []


def test_a_clamp_at_0_is_not_the_baseline_nor_is_an_arm_with_another_system_prompt() -> None:
    clamps = [f"{{name: c{scale}, steering: [{{feature: 3, mode: clamp, scale: {scale}}}]}}" for scale in (0, 5)]
    assert [points for _, points, _ in curves(*clamps)] == [(("c0", 0.0), ("c5", 5.0))]
    told = [f"{{name: c{scale}, system: s, steering: [{{feature: 3, scale: {scale}}}]}}" for scale in (1, 5)]
    assert [points for _, points, _ in curves(*told)] == [(("c1", 1.0), ("c5", 5.0))]


@pytest.mark.parametrize(
    ("sweep", "title", "num_arms"),
    [
        (Sweep("ocean", (0, 0.5, 1)), "strength of ocean", 4),
        (Sweep("res17/3857", (0, 0.5, 1, 2), controls="each"), "add 3857, doses", 7),
        (Sweep("3857", (-1, 0.5), unit="norm", controls="none"), "add 3857, norm", 3),
        (Sweep("3857", (0, 2, 5), mode="multiply"), "multiply 3857, times", 5),
        (Sweep("3857", (0, 2), mode="clamp", unit="max"), "clamp 3857, max", 4),
    ],
)
def test_a_sweep_is_an_experiment_with_one_curve(sweep: Sweep, title: str, num_arms: int, tmp_path: Path) -> None:
    experiment = parse_experiment(sweep_file(sweep, tmp_path), file="x")
    assert experiment.name == sweep.name
    assert len(experiment.arms) == num_arms
    (curve,) = find_curves(experiment)
    assert curve.title == title
    assert ("baseline" in dict(curve.points)) == (sweep.mode == "add")
    assert len(experiment.prompts) == 4
    schema = experiment.text.splitlines()[0].partition("$schema=")[2]
    assert (tmp_path / schema).resolve().name == "experiment.schema.json"


def test_the_largest_scale_gets_the_control() -> None:
    text = sweep_file(Sweep("ocean", (1, -3, 2)), Path())
    assert "{name: control -3, control_of: scale -3}" in text


@pytest.mark.parametrize("sweep", [Sweep("ocean", (0,)), Sweep("ocean", ()), Sweep("3", tuple(range(40)))])
def test_a_sweep_of_nothing_or_too_much_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--scales|--control none"):
        sweep_file(sweep, tmp_path)


def test_points_lie_within_the_chart_and_ticks_are_round() -> None:
    points = [
        ChartPoint(0, 0.0, None, None, "a"),
        ChartPoint(1, 0.3, 0.1, 0.55, "b"),
        ChartPoint(2, 0.9, 0.8, 1.05, "c"),
    ]
    drawn = chart("KL", "doses", points, points[1:], None)
    marks = [mark for line in drawn["lines"] for mark in line["marks"]]
    assert all(0 <= mark["x"] <= WIDTH and 0 <= mark["y"] <= HEIGHT for mark in marks)
    assert [line["kind"] for line in drawn["lines"]] == ["control", "steered"]
    assert [label for _, label in drawn["y_ticks"]] == ["0", "0.5", "1"]
    assert [label for _, label in drawn["x_ticks"]] == ["0", "1", "2"]
    assert marks[-1]["label"] == "c: 0.9 [0.8, 1.05]"
    assert drawn["limit"] is None


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0, 1e-9, 1e9])
def test_a_chart_of_equal_values_can_be_drawn(value: float) -> None:
    drawn = chart("x", "y", [ChartPoint(0, value, value, value, "a"), ChartPoint(1, value, None, None, "b")], [], 0.2)
    assert all(0 <= mark["y"] <= HEIGHT for mark in drawn["lines"][0]["marks"])
    assert 1 <= len(drawn["y_ticks"]) <= 12

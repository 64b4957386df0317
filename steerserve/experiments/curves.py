"""Dose-response curves: arms that differ in one number only, sorted by it, with their controls."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.wire.edits import parse_steering

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.experiments.experiment import Experiment

_MAX_EDITS = 4096
_LEAST_POINTS = 2

Dose = tuple[str, float]
"""An arm's name, and the number by which the arm differs from the others of its curve."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Arms that differ in one number only."""

    title: str
    """Name of the number, such as `strength of ocean`."""
    points: tuple[Dose, ...]
    """The arms by rising number; the first arm is the point at 0 if 0 means no edit."""
    controls: tuple[Dose, ...]
    """The control arms, by the number of the arm that each repeats."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """An arm's steering without its numbers, and the numbers."""

    rest: str
    """Everything but the numbers, as JSON."""
    numbers: tuple[float, ...]
    """The strength, then the scale of each edit with a scale."""
    names: tuple[str, ...]
    """Name of each number."""
    zeros: tuple[bool, ...]
    """Whether each number, at 0, leaves the model unchanged."""


def find_curves(experiment: Experiment) -> list[Curve]:
    """Return the curves of an experiment: groups of arms that are equal in all but one number."""
    arms = experiment.arms
    shapes = {arm["name"]: _shape(arm) for arm in arms if arm.get("steering") is not None}
    groups: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        groups.setdefault(shape.rest, []).append(name)
    curves = []
    for names in groups.values():
        varied = _varied([shapes[name].numbers for name in names])
        if len(names) < _LEAST_POINTS or len(varied) != 1:
            continue
        index = varied[0]
        shape = shapes[names[0]]
        doses = {name: shapes[name].numbers[index] for name in names}
        controls = {arm["name"]: doses[arm["control_of"]] for arm in arms if arm.get("control_of") in doses}
        if shape.zeros[index] and _is_plain(arms[0], _arm(arms, names[0])):
            for series in (doses, controls):
                if series:
                    series.setdefault(arms[0]["name"], 0.0)
        curves.append(Curve(shape.names[index], _sorted(doses), _sorted(controls)))
    return curves


def _sorted(doses: Mapping[str, float]) -> tuple[Dose, ...]:
    return tuple(sorted(doses.items(), key=lambda dose: dose[1]))


def _arm(arms: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(arm for arm in arms if arm["name"] == name)


def _is_plain(first: Mapping[str, Any], steered: Mapping[str, Any]) -> bool:
    """Return whether the first arm equals the other one without steering."""
    return (
        first.get("steering") is None and not first.get("control_of") and first.get("system") == steered.get("system")
    )


def _varied(numbers: Sequence[tuple[float, ...]]) -> list[int]:
    return [index for index, values in enumerate(zip(*numbers, strict=True)) if len(set(values)) > 1]


def _shape(arm: Mapping[str, Any]) -> _Shape:
    steering = parse_steering(arm["steering"], max_edits=_MAX_EDITS)
    edits = [edit.model_dump(exclude_unset=True) for edit in steering.edits] if steering is not None else []
    presets = list(steering.presets) if steering is not None else []
    parts = [*presets, *(["edits"] if edits else [])]
    numbers = [steering.strength if steering is not None else 1.0]
    names, zeros = [f"strength of {', '.join(parts)}"], [True]
    for edit in edits:
        scale = edit.pop("scale", None)
        if scale is None:
            continue
        unit, mode = edit.get("unit", "raw"), edit.get("mode", "add")
        target = edit["vector"] if isinstance(edit.get("vector"), str) else edit.get("feature", "vector")
        numbers.append(float(scale))
        names.append(f"{mode} {target}, {'doses' if unit == 'dose' else unit if mode != 'multiply' else 'times'}")
        zeros.append(mode == "add")
    rest = json.dumps([edits, presets, arm.get("system")], sort_keys=True)
    return _Shape(rest, tuple(numbers), tuple(names), tuple(zeros))

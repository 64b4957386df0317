"""Dose-response: arms that differ only in one scale, in its order, with their controls beside them."""

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
"""An arm, and the number by which it differs."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Arms along one scale."""

    title: str
    """What the number is, such as `strength of ocean`."""
    points: tuple[Dose, ...]
    """By rising number; the first arm is the point at 0 where that is what 0 means."""
    controls: tuple[Dose, ...]


@dataclass(frozen=True, slots=True)
class _Shape:
    """An arm's edits without their numbers, and the numbers."""

    rest: str
    numbers: tuple[float, ...]
    """The strength, then the scale of each edit that has one."""
    names: tuple[str, ...]
    zeros: tuple[bool, ...]
    """Whether each number at 0 leaves the model as it is."""


def find_curves(experiment: Experiment) -> list[Curve]:
    """Return the curves that an experiment's arms make: groups equal in all but one number."""
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
        place = varied[0]
        shape = shapes[names[0]]
        doses = {name: shapes[name].numbers[place] for name in names}
        controls = {arm["name"]: doses[arm["control_of"]] for arm in arms if arm.get("control_of") in doses}
        if shape.zeros[place] and _is_plain(arms[0], _arm(arms, names[0])):
            for series in (doses, controls):
                if series:
                    series.setdefault(arms[0]["name"], 0.0)
        curves.append(Curve(shape.names[place], _sorted(doses), _sorted(controls)))
    return curves


def _sorted(doses: Mapping[str, float]) -> tuple[Dose, ...]:
    return tuple(sorted(doses.items(), key=lambda dose: dose[1]))


def _arm(arms: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(arm for arm in arms if arm["name"] == name)


def _is_plain(first: Mapping[str, Any], steered: Mapping[str, Any]) -> bool:
    """Tell whether the first arm is the other one without its steering."""
    return (
        first.get("steering") is None and not first.get("control_of") and first.get("system") == steered.get("system")
    )


def _varied(numbers: Sequence[tuple[float, ...]]) -> list[int]:
    return [place for place, values in enumerate(zip(*numbers, strict=True)) if len(set(values)) > 1]


def _shape(arm: Mapping[str, Any]) -> _Shape:
    steering = parse_steering(arm["steering"], max_edits=_MAX_EDITS)
    edits = [edit.model_dump(exclude_unset=True) for edit in steering.edits] if steering is not None else []
    presets = list(steering.presets) if steering is not None else []
    named = [*presets, *(["edits"] if edits else [])]
    numbers, names, zeros = (
        [steering.strength if steering is not None else 1.0],
        [f"strength of {', '.join(named)}"],
        [True],
    )
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

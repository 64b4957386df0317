"""From the unit that a client counts in to raw numbers: activation for features, multiples for vectors. No torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError
from steerserve.steering.scales import FeatureTarget, UnknownDosesError, VectorTarget
from steerserve.wire.edits import MAX_SCALE

if TYPE_CHECKING:
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.scales import Layers, Scales, Target
    from steerserve.wire.edits import Edit

_LOOKED_UP = ("max", "dose")
_LEAST_NORM = 1e-6


def asks_lookup(value: object) -> bool:
    """Tell whether the JSON value of `steering` means files: a preset, a stored vector, or a unit of a store."""
    if isinstance(value, dict):
        return bool(value.get("presets")) or asks_lookup(value.get("edits"))
    if not isinstance(value, list):
        return isinstance(value, str)
    return any(isinstance(one, str) or (isinstance(one, dict) and _edit_asks_lookup(one)) for one in value)


def _edit_asks_lookup(edit: dict[str, object]) -> bool:
    return edit.get("unit") in _LOOKED_UP or isinstance(edit.get("vector"), str)


class UnitConverter:
    """Converts the scales of one request; notes the doses that must be measured first."""

    def __init__(self, scales: Scales) -> None:
        """Look facts up in `scales`."""
        self._scales = scales
        self._unknown: list[Target] = []

    def feature(self, edit: Edit, dictionary: Dictionary, feature: int, path: str) -> float | None:
        """Return the raw scale of an edit of a feature; NaN while its dose is not known.

        Raises:
            InvalidRequestError: the unit cannot be counted, or comes to too much.
        """
        scale = edit.scale
        if scale is None or _is_raw(edit):
            return scale
        target = FeatureTarget(dictionary, feature)
        if edit.unit == "max":
            return _checked(edit, scale * self._maximum(target, path), path)
        if feature in dictionary.zero_directions:
            message = (
                f"{path}.feature: feature {feature} of {dictionary.id!r} writes nothing; unit {edit.unit} needs more."
            )
            raise InvalidRequestError(message, param=f"{path}.feature")
        if edit.unit == "norm":
            return _checked(edit, scale * dictionary.mean_norm / dictionary.change_norm(feature), path)
        what = f"feature {feature} of {dictionary.id!r}"
        return _checked(edit, scale * self._dose(target, what, f"{path}.feature"), path)

    def vector(self, edit: Edit, layers: Layers, path: str) -> list[float | None]:
        """Return the raw scale of a vector at each of its hook points; NaN while its dose is not known.

        Raises:
            InvalidRequestError: the unit cannot be counted, or comes to too much.
        """
        scale = edit.scale
        if scale is None or _is_raw(edit):
            return [scale] * len(layers)
        norms = [math.hypot(*values) for _, values in layers]
        if any(norm < _LEAST_NORM for norm in norms):
            message = f"{path}.vector is zero, or nearly so, and unit {edit.unit} cannot count it."
            raise InvalidRequestError(message, param=f"{path}.vector")
        if edit.unit == "norm":
            means = [self._scales.mean_norm(hook_name) for hook_name, _ in layers]
            raw = [scale * mean / norm for mean, norm in zip(means, norms, strict=True)]
        else:
            raw = [scale * self._dose(VectorTarget(layers), "this vector", f"{path}.vector")] * len(layers)
        return [_checked(edit, one, path) for one in raw]

    def check_known(self) -> None:
        """Check that all doses were known.

        Raises:
            UnknownDosesError: some must be measured; then the steering can be resolved again.
        """
        if self._unknown:
            raise UnknownDosesError(self._unknown)

    def _maximum(self, target: FeatureTarget, path: str) -> float:
        maximum = self._scales.maximum(target)
        name = target.dictionary.id
        if maximum is None:
            message = (
                f"{path}.unit: the dictionary {name!r} has no statistics, so it is not known what unit max counts. "
                "Interpret it first (steerserve interpret, or POST /admin/interpret), or take unit raw, norm or dose."
            )
            raise InvalidRequestError(message, param=f"{path}.unit")
        if maximum <= 0:
            message = (
                f"{path}.feature: feature {target.feature} of {name!r} was never active in the text that the "
                "dictionary was interpreted with, so it has no maximum. Take unit raw, norm or dose."
            )
            raise InvalidRequestError(message, param=f"{path}.feature")
        return maximum

    def _dose(self, target: Target, what: str, param: str) -> float:
        try:
            dose = self._scales.dose(target)
        except UnknownDosesError as error:
            self._unknown += error.targets
            return math.nan
        if dose is None:
            message = (
                f"{param}: {what} has no dose: no strength of it changes the output by 1 nat. Take unit raw or norm."
            )
            raise InvalidRequestError(message, param=param)
        return dose


def _is_raw(edit: Edit) -> bool:
    return edit.unit in {None, "raw"} or (edit.unit == "dose" and edit.scale == 0)


def _checked(edit: Edit, raw_scale: float, path: str) -> float:
    if abs(raw_scale) > MAX_SCALE:
        message = (
            f"{path}.scale: {edit.scale:g} in unit {edit.unit} comes to a raw scale of {raw_scale:.3g}, "
            f"and those lie between -{MAX_SCALE:g} and {MAX_SCALE:g}."
        )
        raise InvalidRequestError(message, param=f"{path}.scale")
    return raw_scale

"""Converts scales from a client's unit to raw ones: activations for features, multiples for vectors. No torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError
from steerserve.steering.unit_values import FeatureTarget, UnknownDosesError, VectorTarget
from steerserve.wire.edits import MAX_SCALE

if TYPE_CHECKING:
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.unit_values import Layers, Target, UnitValues
    from steerserve.wire.edits import Edit

MIN_NORM = 1e-6
"""Norm of the shortest vector that still has a direction."""


class RawScaleConverter:
    """Converts the scales of one request, and collects the doses that must be measured first."""

    def __init__(self, unit_values: UnitValues) -> None:
        """Look up what a unit is worth in `unit_values`."""
        self._unit_values = unit_values
        self._missing: list[Target] = []

    def feature(self, edit: Edit, dictionary: Dictionary, feature: int, path: str) -> float | None:
        """Return the raw scale of an edit of a feature; NaN if its dose must be measured first.

        Raises:
            InvalidRequestError: the unit cannot be converted for this feature, or the raw scale is too large.
        """
        scale = edit.scale
        if scale is None or _is_raw(edit):
            return scale
        target = FeatureTarget(dictionary, feature)
        if edit.unit == "max":
            return _checked(edit, scale * self._maximum(target, path), path)
        if feature in dictionary.zero_directions:
            message = (
                f"{path}.feature: feature {feature} of {dictionary.id!r} has a zero direction, so a scale in unit "
                f"{edit.unit} has no meaning. Use unit raw or max."
            )
            raise InvalidRequestError(message, param=f"{path}.feature")
        if edit.unit == "norm":
            return _checked(edit, scale * dictionary.mean_norm / dictionary.change_norm(feature), path)
        what = f"feature {feature} of {dictionary.id!r}"
        return _checked(edit, scale * self._dose(target, what, f"{path}.feature"), path)

    def vector(self, edit: Edit, layers: Layers, path: str) -> list[float | None]:
        """Return the raw scale of a vector at each of its hook points; NaN if its dose must be measured first.

        Raises:
            InvalidRequestError: the unit cannot be converted for this vector, or the raw scale is too large.
        """
        scale = edit.scale
        if scale is None or _is_raw(edit):
            return [scale] * len(layers)
        norms = [math.hypot(*values) for _, values in layers]
        if any(norm < MIN_NORM for norm in norms):
            message = (
                f"{path}.vector is zero or almost zero, so a scale in unit {edit.unit} has no meaning. Use unit raw."
            )
            raise InvalidRequestError(message, param=f"{path}.vector")
        if edit.unit == "norm":
            means = [self._unit_values.mean_norm(hook_name) for hook_name, _ in layers]
            raw_scales = [scale * mean / norm for mean, norm in zip(means, norms, strict=True)]
        else:
            raw_scales = [scale * self._dose(VectorTarget(layers), "this vector", f"{path}.vector")] * len(layers)
        return [_checked(edit, raw_scale, path) for raw_scale in raw_scales]

    def check_known(self) -> None:
        """Check that no dose must be measured first.

        Raises:
            UnknownDosesError: doses must be measured; after that the steering can be resolved.
        """
        if self._missing:
            raise UnknownDosesError(self._missing)

    def _maximum(self, target: FeatureTarget, path: str) -> float:
        maximum = self._unit_values.maximum(target)
        name = target.dictionary.id
        if maximum is None:
            message = (
                f"{path}.unit: unit max needs the statistics of the dictionary {name!r}, and it has none. Interpret it "
                "first (steerserve interpret, or POST /admin/interpret), or use unit raw, norm or dose."
            )
            raise InvalidRequestError(message, param=f"{path}.unit")
        if maximum <= 0:
            message = (
                f"{path}.feature: feature {target.feature} of {name!r} was never active in the text that the "
                "dictionary was interpreted with, so it has no maximum. Use unit raw, norm or dose."
            )
            raise InvalidRequestError(message, param=f"{path}.feature")
        return maximum

    def _dose(self, target: Target, what: str, param: str) -> float:
        try:
            dose = self._unit_values.dose(target)
        except UnknownDosesError as error:
            self._missing += error.targets
            return math.nan
        if dose is None:
            message = (
                f"{param}: {what} has no dose, as no strength of it changes the output by 1 nat. Use unit raw or norm."
            )
            raise InvalidRequestError(message, param=param)
        return dose


def _is_raw(edit: Edit) -> bool:
    return edit.unit in {None, "raw"} or (edit.unit == "dose" and edit.scale == 0)


def _checked(edit: Edit, raw_scale: float, path: str) -> float:
    if abs(raw_scale) > MAX_SCALE:
        message = (
            f"{path}.scale: {edit.scale:g} in unit {edit.unit} is a raw scale of {raw_scale:.3g}, "
            f"and raw scales lie between -{MAX_SCALE:g} and {MAX_SCALE:g}."
        )
        raise InvalidRequestError(message, param=f"{path}.scale")
    return raw_scale

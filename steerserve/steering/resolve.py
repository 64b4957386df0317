"""From what a client wrote to what will be done: features bound to dictionary contents, numbers in raw units."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from steerserve.core.errors import InvalidRequestError, NotFoundError, PresetError
from steerserve.core.names import short_name
from steerserve.steering.directions import DirectionReader
from steerserve.steering.gates import check_feature, resolve_gate
from steerserve.steering.resolved import ResolvedEdit, ResolvedSteering
from steerserve.steering.units import UnitConverter
from steerserve.wire.edits import SETTING_MODES, UNITS, Edit, Steering, parse_steering

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.dictionaries.registry import RegistrySnapshot
    from steerserve.steering.gates import ResolvedGate
    from steerserve.steering.lookups import PresetLookup, VectorLookup
    from steerserve.steering.scales import Scales

_LEAST_NORM = 1e-6


class _Placed(NamedTuple):
    """A resolved edit, and where the client wrote it."""

    where: str
    param: str
    edit: ResolvedEdit


class SteeringResolver:
    """Checks the `steering` of requests against a model and its dictionaries. No torch; any thread."""

    def __init__(
        self,
        widths: Mapping[str, int],
        max_edits: int,
        scales: Scales,
        *,
        model_id: str | None = None,
        vectors: VectorLookup | None = None,
        presets: PresetLookup | None = None,
    ) -> None:
        """Check edits against a model.

        Args:
            widths: Of the vectors at each hook point of the model.
            max_edits: In one request, a stored vector counting once for each of its hook points.
            scales: What the units are worth.
            model_id: What stored vectors name as the model that they were made for; None takes them all.
            vectors: Where these are found.
            presets: The same for them.
        """
        self._max_edits = max_edits
        self._scales = scales
        self._directions = DirectionReader(widths, model_id, vectors)
        self._presets = presets

    def resolve(
        self, value: object, snapshot: RegistrySnapshot, *, model_presets: Sequence[str] = ()
    ) -> ResolvedSteering | None:
        """Return what a request asks for; None where it asks for nothing.

        Args:
            value: The JSON value of `steering`.
            snapshot: The dictionaries that are loaded.
            model_presets: Presets that the model's name carries; they add up with `value`.

        Raises:
            InvalidRequestError: it cannot be honoured; `param` is a path such as `steering.edits[0].feature`.
            UnknownDosesError: nothing is wrong with it, but doses must be measured first.
        """
        steering = parse_steering(value, max_edits=self._max_edits) or Steering()
        named = [("model", name) for name in model_presets]
        named += [(f"steering.presets[{place}]", name) for place, name in enumerate(steering.presets)]
        if not steering.edits and not named:
            return None
        converter = UnitConverter(self._scales)
        placed = [one for param, name in named for one in self._resolve_preset(name, param, snapshot, converter)]
        for place, edit in enumerate(steering.edits):
            path = f"steering.edits[{place}]"
            resolved = self._resolve_edit(edit, path, snapshot, converter)
            placed += [_Placed(path, path, one) for one in resolved]
        _refuse_contradictions(placed)
        if len(placed) > self._max_edits:
            message = (
                f"A request may carry at most {self._max_edits} edits, and this one comes to {len(placed)}: those of "
                "presets count, and a stored vector counts once for each of its hook points."
            )
            raise InvalidRequestError(message, param="steering.edits")
        converter.check_known()
        if not placed:  # presets may carry no more than a system prompt or sampling
            return None
        return ResolvedSteering(tuple(one.edit for one in placed), steering.strength)

    def _resolve_preset(
        self, name: str, param: str, snapshot: RegistrySnapshot, converter: UnitConverter
    ) -> list[_Placed]:
        if self._presets is None:
            message = f"There is no preset {short_name(name)!r}; this server has no presets. Send the edits themselves."
            raise InvalidRequestError(message, param=param)
        try:
            preset = self._presets.find(name)
        except (NotFoundError, PresetError) as error:
            raise InvalidRequestError(error.message, param=param) from error
        placed: list[_Placed] = []
        for place, edit in enumerate(preset.edits):
            try:
                resolved = self._resolve_edit(edit, f"edits[{place}]", snapshot, converter)
            except InvalidRequestError as error:
                message = f"The preset {preset.name!r} cannot be used here: {error.message}"
                raise InvalidRequestError(message, param=param, code=error.code) from error
            where = f"edits[{place}] of the preset {preset.name!r}"
            placed += [_Placed(where, param, replace(one, preset=preset.name)) for one in resolved]
        return placed

    def _resolve_edit(
        self, edit: Edit, path: str, snapshot: RegistrySnapshot, converter: UnitConverter
    ) -> list[ResolvedEdit]:
        """Return what an edit comes to: one, or with a stored vector one at each of its hook points."""
        if edit.feature is not None:
            dictionary = self._find_dictionary(edit, edit.feature, path, snapshot)
            raw_scale = converter.feature(edit, dictionary, edit.feature, path)
            gate = _resolve_gate(edit, [dictionary.hook_name], path, snapshot)
            return [_resolved(edit, dictionary.hook_name, raw_scale, gate, dictionary=dictionary)]
        layers = self._directions.read(edit.vector or "", f"{path}.vector")
        if edit.mode == "remove" and any(math.hypot(*values) < _LEAST_NORM for _, values in layers):
            message = f"{path}.vector is zero, or nearly so, and has no direction to remove."
            raise InvalidRequestError(message, param=f"{path}.vector")
        raw_scales = converter.vector(edit, layers, path)
        gate = _resolve_gate(edit, [hook_name for hook_name, _ in layers], path, snapshot)
        return [
            _resolved(edit, hook_name, raw_scale, gate, vector=values)
            for (hook_name, values), raw_scale in zip(layers, raw_scales, strict=True)
        ]

    @staticmethod
    def _find_dictionary(edit: Edit, feature: int, path: str, snapshot: RegistrySnapshot) -> Dictionary:
        dictionary = snapshot.find(edit.dictionary, f"{path}.dictionary")
        check_feature(dictionary, feature, path)
        if edit.mode == "remove" and feature in dictionary.zero_directions:
            message = (
                f"{path}.feature: feature {feature} of {dictionary.id!r} writes nothing, so there is none to remove."
            )
            raise InvalidRequestError(message, param=f"{path}.feature")
        return dictionary


def _resolve_gate(edit: Edit, edited: Sequence[str], path: str, snapshot: RegistrySnapshot) -> ResolvedGate | None:
    return resolve_gate(edit.when, edited, f"{path}.when", snapshot) if edit.when is not None else None


def _resolved(
    edit: Edit,
    hook_name: str,
    raw_scale: float | None,
    gate: ResolvedGate | None,
    *,
    dictionary: Dictionary | None = None,
    vector: tuple[float, ...] | None = None,
) -> ResolvedEdit:
    return ResolvedEdit(
        hook_name=hook_name,
        dictionary=dictionary,
        feature=edit.feature,
        vector=vector,
        mode=edit.mode,
        scale=edit.scale,
        raw_scale=raw_scale,
        positions=edit.positions,
        start=edit.start,
        stop=edit.stop,
        special_tokens=edit.special_tokens,
        ramp=edit.ramp,
        gate=gate,
        unit=(edit.unit or "raw") if edit.mode in UNITS else None,
        vector_name=edit.vector if isinstance(edit.vector, str) else None,
    )


def _refuse_contradictions(placed: Iterable[_Placed]) -> None:
    # By contents: one dictionary may be loaded under two ids.
    setters: dict[tuple[str, str, int | None], _Placed] = {}
    for one in placed:
        edit = one.edit
        if edit.dictionary is None or edit.mode not in SETTING_MODES:
            continue
        first = setters.setdefault((edit.contents, edit.hook_name, edit.feature), one)
        if first is not one:
            other = first.edit.dictionary.id if first.edit.dictionary is not None else ""
            same = f", which has the same contents as {other!r}" if other != edit.dictionary.id else ""
            message = (
                f"{first.where} and {one.where} both set feature {edit.feature} of "
                f"{edit.dictionary.id!r}{same} (clamp, ablate, floor and ceiling set); keep one of them."
            )
            raise InvalidRequestError(message, param=one.param)

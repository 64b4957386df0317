"""Resolving the edits of a request: features bound to dictionary contents, scales in raw units. No torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from steerserve.core.errors import InvalidRequestError, NotFoundError, PresetError
from steerserve.core.names import short_name
from steerserve.steering.directions import DirectionReader
from steerserve.steering.gates import check_feature, resolve_gate
from steerserve.steering.raw_scale import MIN_NORM, RawScaleConverter
from steerserve.steering.resolved import ResolvedEdit, ResolvedSteering
from steerserve.wire.edits import SETTING_MODES, UNITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.dictionaries.registry import RegistrySnapshot
    from steerserve.steering.gates import ResolvedGate
    from steerserve.steering.lookups import PresetLookup, VectorLookup
    from steerserve.steering.unit_values import UnitValues
    from steerserve.wire.edits import Edit, Steering


class _WrittenEdit(NamedTuple):
    """A resolved edit, and where the client wrote it."""

    source: str
    """Its path or preset, in words for messages."""
    param: str
    edit: ResolvedEdit


class SteeringResolver:
    """Checks the `steering` of requests against a model and its dictionaries. No torch; any thread."""

    def __init__(
        self,
        widths: Mapping[str, int],
        max_edits: int,
        scales: UnitValues,
        *,
        model_id: str | None = None,
        vectors: VectorLookup | None = None,
        presets: PresetLookup | None = None,
    ) -> None:
        """Check edits against a model.

        Args:
            widths: Width of the vectors at each hook point of the model.
            max_edits: Largest number of edits in a request; a stored vector counts once for each of its hook points.
            scales: Looks up what a unit is worth.
            model_id: Name of the model. Vectors made for another model are refused; None accepts all.
            vectors: Looks up stored vectors; None if the server has no such store.
            presets: Looks up presets; None if the server has none.
        """
        self._max_edits = max_edits
        self._scales = scales
        self._directions = DirectionReader(widths, model_id, vectors)
        self._presets = presets

    def resolve(
        self, steering: Steering, snapshot: RegistrySnapshot, *, model_presets: Sequence[str] = ()
    ) -> ResolvedSteering | None:
        """Return the edits of a request; None if it has none.

        Args:
            steering: The parsed `steering` of the request.
            snapshot: The loaded dictionaries.
            model_presets: Presets that the request's model name carries; their edits come before those of `steering`.

        Raises:
            InvalidRequestError: an edit cannot be made; `param` is a path such as `steering.edits[0].feature`.
            UnknownDosesError: the edits are valid, but doses must be measured first.
        """
        named = [("model", name) for name in model_presets]
        named += [(f"steering.presets[{index}]", name) for index, name in enumerate(steering.presets)]
        if not steering.edits and not named:
            return None
        converter = RawScaleConverter(self._scales)
        written = [edit for param, name in named for edit in self._resolve_preset(name, param, snapshot, converter)]
        for index, edit in enumerate(steering.edits):
            path = f"steering.edits[{index}]"
            resolved = self._resolve_edit(edit, path, snapshot, converter)
            written += [_WrittenEdit(path, path, part) for part in resolved]
        _refuse_contradictions(written)
        if len(written) > self._max_edits:
            message = (
                f"A request may carry at most {self._max_edits} edits, and this one has {len(written)}. The edits of "
                "presets count, and a stored vector counts once for each of its hook points."
            )
            raise InvalidRequestError(message, param="steering.edits")
        converter.check_known()
        if not written:  # presets may have only a system prompt or sampling settings
            return None
        return ResolvedSteering(tuple(part.edit for part in written), steering.strength)

    def _resolve_preset(
        self, name: str, param: str, snapshot: RegistrySnapshot, converter: RawScaleConverter
    ) -> list[_WrittenEdit]:
        if self._presets is None:
            message = f"The preset {short_name(name)!r} does not exist: this server has no presets. Send its edits."
            raise InvalidRequestError(message, param=param)
        try:
            preset = self._presets.find(name)
        except (NotFoundError, PresetError) as error:
            raise InvalidRequestError(error.message, param=param) from error
        written: list[_WrittenEdit] = []
        for index, edit in enumerate(preset.edits):
            try:
                resolved = self._resolve_edit(edit, f"edits[{index}]", snapshot, converter)
            except InvalidRequestError as error:
                message = f"The preset {preset.name!r} cannot be used here: {error.message}"
                raise InvalidRequestError(message, param=param, code=error.code) from error
            source = f"edits[{index}] of the preset {preset.name!r}"
            written += [_WrittenEdit(source, param, replace(part, preset=preset.name)) for part in resolved]
        return written

    def _resolve_edit(
        self, edit: Edit, path: str, snapshot: RegistrySnapshot, converter: RawScaleConverter
    ) -> list[ResolvedEdit]:
        """Return the resolved edit; for a stored vector, one for each of its hook points."""
        if edit.feature is not None:
            dictionary = self._find_dictionary(edit, edit.feature, path, snapshot)
            raw_scale = converter.feature(edit, dictionary, edit.feature, path)
            gate = _resolve_gate(edit, [dictionary.hook_name], path, snapshot)
            return [_resolved(edit, dictionary.hook_name, raw_scale, gate, dictionary=dictionary)]
        layers = self._directions.read(edit.vector or "", f"{path}.vector")
        if edit.mode == "remove" and any(math.hypot(*values) < MIN_NORM for _, values in layers):
            message = f"{path}.vector is zero or almost zero, so it has no direction to remove."
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
                f"{path}.feature: feature {feature} of {dictionary.id!r} has a zero direction, which cannot be removed."
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


def _refuse_contradictions(written: Iterable[_WrittenEdit]) -> None:
    # Dictionaries are compared by contents: the same one may be loaded under two ids.
    setters: dict[tuple[str, str, int | None], _WrittenEdit] = {}
    for setter in written:
        edit = setter.edit
        if edit.dictionary is None or edit.mode not in SETTING_MODES:
            continue
        first = setters.setdefault((edit.contents, edit.hook_name, edit.feature), setter)
        if first is not setter:
            other = first.edit.dictionary.id if first.edit.dictionary is not None else ""
            same = f", which has the same contents as {other!r}" if other != edit.dictionary.id else ""
            message = (
                f"{first.source} and {setter.source} both set feature {edit.feature} of {edit.dictionary.id!r}{same} "
                "(the modes clamp, ablate, floor and ceiling set a feature). Keep one of them."
            )
            raise InvalidRequestError(message, param=setter.param)

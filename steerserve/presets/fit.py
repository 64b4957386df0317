"""Whether a preset can be used with the served model and the loaded dictionaries."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

from steerserve.core.errors import InvalidRequestError, NotFoundError, PresetError
from steerserve.core.findings import parse_path
from steerserve.steering.unit_values import UnknownDosesError
from steerserve.wire.edits import Steering

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.dictionaries.registry import RegistrySnapshot
    from steerserve.presets.preset import Preset
    from steerserve.steering.resolve import SteeringResolver

_PREFIX = "steering."


def check_fit(preset: Preset, resolver: SteeringResolver, snapshot: RegistrySnapshot, model_id: str) -> None:
    """Check a preset against the served model and its dictionaries. Not for an event loop.

    Raises:
        PresetError: the preset cannot be used; the message names the line of its file.
    """
    if (misfit := preset.misfit(model_id)) is not None:
        raise preset.refusal(("model",), misfit)
    try:
        resolver.resolve(Steering(edits=list(preset.edits)), snapshot)
    except UnknownDosesError:  # they are measured when a request needs them
        pass
    except InvalidRequestError as error:
        path = parse_path((error.param or "").removeprefix(_PREFIX))
        raise preset.refusal(path, error.message.replace(f"{_PREFIX}edits[", "edits["), error.code) from error
    for index, check in enumerate(preset.content.checks):
        if (activates := check.activates) is None:
            continue
        path = ("checks", index, "activates")
        try:
            dictionary = snapshot.find(activates.dictionary, "dictionary")
        except (InvalidRequestError, NotFoundError) as error:
            raise preset.refusal((*path, "dictionary"), error.message) from error
        if activates.feature >= dictionary.d_sae:
            last = dictionary.d_sae - 1
            sentence = f"dictionary {dictionary.id!r} has features 0 to {last}, not {str(activates.feature)[:20]}"
            raise preset.refusal((*path, "feature"), sentence)


class PresetFits:
    """Remembers which presets fit which dictionaries, since every listing checks all presets. Any thread."""

    def __init__(self, check: Callable[[Preset, RegistrySnapshot], None]) -> None:
        """Check with `check`, which raises a `PresetError` as `check_fit` does."""
        self._check = check
        self._lock = threading.Lock()
        self._results: dict[str, _FitResult] = {}

    def problem(self, preset: Preset, snapshot: RegistrySnapshot) -> str | None:
        """Say why a preset cannot be used with these dictionaries; None if it can. Not for an event loop."""
        # Weak references, so that an unloaded dictionary's memory is freed.
        loaded = tuple(weakref.ref(dictionary) for dictionary in snapshot.dictionaries.values())
        with self._lock:
            last = self._results.get(preset.name)
        if last is not None and last.preset is preset and _same(last.loaded, loaded):
            return last.problem
        problem: str | None = None
        try:
            self._check(preset, snapshot)
        except PresetError as error:
            problem = error.message
        # Stored vectors come and go while the dictionaries stay, so such a preset is checked every time.
        if not any(isinstance(edit.vector, str) for edit in preset.edits):
            with self._lock:
                self._results[preset.name] = _FitResult(preset, loaded, problem)
        return problem


class _FitResult(NamedTuple):
    preset: Preset
    loaded: tuple[weakref.ref[Dictionary], ...]
    problem: str | None


def _same(left: tuple[weakref.ref[Dictionary], ...], right: tuple[weakref.ref[Dictionary], ...]) -> bool:
    """Compare by identity: `==` would compare the dictionaries' weights number by number."""
    return len(left) == len(right) and all(a() is b() is not None for a, b in zip(left, right, strict=True))

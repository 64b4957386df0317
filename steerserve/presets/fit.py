"""Whether a preset goes with what is loaded: its dictionaries and features, those of its checks too."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

from steerserve.core.errors import InvalidRequestError, NotFoundError, PresetError
from steerserve.core.findings import parse_path
from steerserve.steering.scales import UnknownDosesError
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
        PresetError: it cannot be used here; the message says which line of it.
    """
    if (misfit := preset.misfit(model_id)) is not None:
        raise preset.refusal(("model",), misfit)
    try:
        resolver.resolve(Steering(edits=list(preset.edits)), snapshot)
    except UnknownDosesError:  # which will be measured when they are needed
        pass
    except InvalidRequestError as error:
        path = parse_path((error.param or "").removeprefix(_PREFIX))
        raise preset.refusal(path, error.message.replace(f"{_PREFIX}edits[", "edits["), error.code) from error
    for place, check in enumerate(preset.content.checks):
        if (asked := check.activates) is None:
            continue
        path = ("checks", place, "activates")
        try:
            dictionary = snapshot.find(asked.dictionary, "dictionary")
        except (InvalidRequestError, NotFoundError) as error:
            raise preset.refusal((*path, "dictionary"), error.message) from error
        if asked.feature >= dictionary.d_sae:
            last = dictionary.d_sae - 1
            sentence = f"dictionary {dictionary.id!r} has features 0 to {last}, and not {str(asked.feature)[:20]}"
            raise preset.refusal((*path, "feature"), sentence)


class PresetFits:
    """Remembers which presets go with what is loaded, as listings ask for it again and again. Any thread."""

    def __init__(self, check: Callable[[Preset, RegistrySnapshot], None]) -> None:
        """Ask `check`, which raises a `PresetError` as `check_fit` does."""
        self._check = check
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def problem(self, preset: Preset, snapshot: RegistrySnapshot) -> str | None:
        """Say why a preset cannot be used with these dictionaries; None where it can. Not for an event loop."""
        # Weak, so that a dictionary that is unloaded gives its memory back.
        loaded = tuple(weakref.ref(dictionary) for dictionary in snapshot.dictionaries.values())
        with self._lock:
            known = self._known.get(preset.name)
        if known is not None and known.preset is preset and _same(known.loaded, loaded):
            return known.problem
        problem: str | None = None
        try:
            self._check(preset, snapshot)
        except PresetError as error:
            problem = error.message
        # Vectors are stored and deleted while the dictionaries stay.
        if not any(isinstance(edit.vector, str) for edit in preset.edits):
            with self._lock:
                self._known[preset.name] = _Known(preset, loaded, problem)
        return problem


class _Known(NamedTuple):
    preset: Preset
    loaded: tuple[weakref.ref[Dictionary], ...]
    problem: str | None


def _same(one: tuple[weakref.ref[Dictionary], ...], other: tuple[weakref.ref[Dictionary], ...]) -> bool:
    """Compare by identity: dictionaries with equal contents are compared number by number otherwise."""
    return len(one) == len(other) and all(a() is b() is not None for a, b in zip(one, other, strict=True))

"""Presets made from two sets of texts: edits of the features that tell the sets apart, written as a file."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.contrast.contrast import contrast, ready_steering
from steerserve.contrast.text_sets import read_text_sets
from steerserve.core.errors import InvalidRequestError
from steerserve.presets.writing import dump_line, dump_preset, schema_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.contrast.separation import Candidate
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.requests.served import ServedModel
    from steerserve.store.records import Calibration

_MAX_CANDIDATES = 12
"""Features whose unknown doses are measured; each takes seconds on a CPU."""


@dataclass(frozen=True, slots=True)
class PresetEdit:
    """One edit of a preset that was made from texts, and why it is in it."""

    edit: Mapping[str, Any]
    """The edit as JSON."""
    candidate: Candidate
    label: str | None

    @property
    def comment(self) -> str:
        """The feature in a line of printable ASCII characters, for a YAML comment."""
        label = re.sub(r"[^\x20-\x7e]", " ", self.label or "no label")
        return f"{label}; AUC {self.candidate.auc:.2f}, on texts left out {self.candidate.held_out_auc:.2f}"


@dataclass(frozen=True, slots=True)
class MadePreset:
    """A preset that was made from texts; it is in no folder yet."""

    text: str
    """The YAML of the preset's file."""
    edits: tuple[PresetEdit, ...]


async def make_preset(
    served: ServedModel,
    name: str,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    dictionary_id: str | None = None,
    max_edits: int,
    description: str,
) -> MadePreset:
    """Make a preset that steers from the negative texts towards the positive ones.

    Raises:
        InvalidRequestError: the texts or the dictionary cannot be used, or no feature tells the texts apart.
        NotFoundError: there is no such dictionary.
    """
    dictionary = served.registry.snapshot().find(dictionary_id, "dictionary")
    sets = await asyncio.to_thread(read_text_sets, served.tokenizer, positive, negative, served.context_length)
    candidates = await contrast(served.engine, dictionary, sets, _MAX_CANDIDATES, served.contrast_queue)
    calibrations = await asyncio.to_thread(_measured_calibrations, served, dictionary, candidates)
    steering = ready_steering(candidates, dictionary, calibrations, max_edits)
    if not steering:
        message = (
            f"No feature of {dictionary.id!r} marks the positive texts better than chance explains. Give more texts "
            "(ten of each kind are often enough), or texts that differ in one thing alone."
        )
        raise InvalidRequestError(message, param="positive")
    features = [edit["feature"] for edit in steering]
    labels = await asyncio.to_thread(served.stores.labels, dictionary, features)
    by_feature = {candidate.feature: candidate for candidate in candidates}
    edits = tuple(
        PresetEdit(edit, by_feature[feature], labels.get(feature))
        for edit, feature in zip(steering, features, strict=True)
    )
    return MadePreset(_text(served, name, description, edits), edits)


def _measured_calibrations(
    served: ServedModel, dictionary: Dictionary, candidates: Sequence[Candidate]
) -> Mapping[int, Calibration]:
    """Return the calibrations of a dictionary, after measuring the doses of the candidates."""
    for candidate in candidates:
        edit = {"dictionary": dictionary.id, "feature": candidate.feature, "scale": 1.0, "unit": "dose"}
        with contextlib.suppress(InvalidRequestError):  # no strength of this feature is a dose
            served.resolve_steering([edit])
    store = served.stores.find(dictionary)
    return store.calibrations() if store is not None else {}


def _text(served: ServedModel, name: str, description: str, edits: Sequence[PresetEdit]) -> str:
    folder = served.settings.presets_dir
    content = {"name": name, "description": description, "model": served.model_id}
    lines = [
        *dump_preset(content, folder).splitlines()[1:],
        "# The features that tell the texts apart, together about one dose (a change that is visible).",
        "# Multiply the scales to push harder, or send the preset with a `strength`.",
        "edits:",
    ]
    for edit in edits:
        lines += [f"  # {edit.comment}", f"  - {dump_line(edit.edit)}"]
    lines += [
        "checks:",
        "  # `steerserve presets test` runs these; add what the text must contain (contains_any, activates).",
        "  - prompt: Tell me about yourself.",
        "    max_repetition: 0.3",
    ]
    return schema_line(folder) + "\n".join(lines) + "\n"

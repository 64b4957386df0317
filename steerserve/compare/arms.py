"""The arms of a comparison: what each generates from, and what all of them edit. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.core.errors import DictionaryBusyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.resolved import ResolvedSteering


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the generations that are put side by side."""

    name: str
    prompt_ids: tuple[int, ...]
    steering: ResolvedSteering | None = None
    control_of: str | None = None
    """The arm whose edits it repeats along random directions."""

    @property
    def is_steered(self) -> bool:
        """Whether anything is changed: at strength 0 nothing is."""
        return self.steering is not None and bool(self.steering.effective_edits)


@dataclass(frozen=True, slots=True)
class EditedFeatures:
    """Features of one dictionary that any arm edits."""

    dictionary: Dictionary
    features: tuple[int, ...]


def edited_features(steerings: Iterable[ResolvedSteering | None]) -> list[EditedFeatures]:
    """Return which features all arms together edit, by dictionary.

    Raises:
        DictionaryBusyError: a dictionary was replaced after the first arm that names it was checked.
    """
    dictionaries: dict[str, Dictionary] = {}
    features: dict[str, set[int]] = {}
    for edit in (edit for steering in steerings if steering is not None for edit in steering.edits):
        if edit.dictionary is None or edit.feature is None:
            continue
        known = dictionaries.setdefault(edit.dictionary.id, edit.dictionary)
        if known.contents != edit.dictionary.contents:
            message = f"The dictionary {known.id!r} was replaced while the arms were checked. Send them again."
            raise DictionaryBusyError(message, param="arms")
        features.setdefault(known.id, set()).add(edit.feature)
    return [EditedFeatures(found, tuple(sorted(features[name]))) for name, found in dictionaries.items()]

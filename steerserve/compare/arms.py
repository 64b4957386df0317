"""The arms of a comparison: the prompt and edits of each, and the features that any of them edits. No torch."""

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
    """One way of continuing the prompt, generated beside the other arms."""

    name: str
    prompt_ids: tuple[int, ...]
    steering: ResolvedSteering | None = None
    control_of: str | None = None
    """Name of the arm whose edits this control repeats along random directions."""

    @property
    def is_steered(self) -> bool:
        """Whether the arm changes anything; at strength 0 it does not."""
        return self.steering is not None and bool(self.steering.effective_edits)


@dataclass(frozen=True, slots=True)
class EditedFeatures:
    """The features of one dictionary that any arm edits."""

    dictionary: Dictionary
    features: tuple[int, ...]


def edited_features(steerings: Iterable[ResolvedSteering | None]) -> list[EditedFeatures]:
    """Return the features that all arms together edit, by dictionary.

    Raises:
        DictionaryBusyError: a dictionary was replaced after the first arm that names it was checked.
    """
    dictionaries: dict[str, Dictionary] = {}
    features: dict[str, set[int]] = {}
    for edit in (edit for steering in steerings if steering is not None for edit in steering.edits):
        if edit.dictionary is None or edit.feature is None:
            continue
        first = dictionaries.setdefault(edit.dictionary.id, edit.dictionary)
        if first.contents != edit.dictionary.contents:
            message = f"The dictionary {first.id!r} was replaced while the arms were checked. Send them again."
            raise DictionaryBusyError(message, param="arms")
        features.setdefault(first.id, set()).add(edit.feature)
    return [EditedFeatures(dictionary, tuple(sorted(features[name]))) for name, dictionary in dictionaries.items()]

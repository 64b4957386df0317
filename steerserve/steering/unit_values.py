"""What the units of a scale are worth: measured facts about dictionaries and vectors, behind a protocol. No torch."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.dictionaries.dictionary import Dictionary

Layers = tuple[tuple[str, tuple[float, ...]], ...]
"""The hook points of a vector, with its values at each."""


@dataclass(frozen=True, slots=True)
class FeatureTarget:
    """A feature whose dose or maximum is looked up."""

    dictionary: Dictionary
    feature: int

    @property
    def key(self) -> str:
        """Key that is equal for the same feature of dictionaries with the same contents."""
        return f"{self.dictionary.contents}/{self.feature}"


@dataclass(frozen=True, slots=True)
class VectorTarget:
    """A vector whose dose is looked up, added at one or several hook points together."""

    layers: Layers

    @property
    def key(self) -> str:
        """Key that is equal for the same values at the same hook points."""
        digest = hashlib.sha256()
        for hook_name, values in self.layers:
            digest.update(f"{hook_name}\0{len(values)}\0".encode())
            digest.update(struct.pack(f"<{len(values)}d", *values))
        return digest.hexdigest()


Target = FeatureTarget | VectorTarget


class UnknownDosesError(Exception):
    """Doses must be measured before the steering can be resolved. Nothing else is wrong with it."""

    def __init__(self, targets: Sequence[Target]) -> None:
        """Keep the `targets` to measure."""
        super().__init__(f"{len(targets)} doses must be measured first")
        self.targets = tuple(targets)


class UnitValues(Protocol):
    """Looks up what units are worth. Not for an event loop: `maximum` and `dose` may read files."""

    def maximum(self, target: FeatureTarget) -> float | None:
        """Return the feature's largest activation in the interpreted text; None if the dictionary has no statistics."""

    def mean_norm(self, hook_name: str) -> float:
        """Return the mean norm of the vectors at a hook point of the model, without sinks."""

    def dose(self, target: Target) -> float | None:
        """Return the raw scale of one dose; None if no scale changes the output by a dose.

        Raises:
            UnknownDosesError: it must be measured first.
        """

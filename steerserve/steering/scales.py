"""What the units of a scale are worth: facts about dictionaries and vectors that others measure. No torch."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.dictionaries.dictionary import Dictionary

Layers = tuple[tuple[str, tuple[float, ...]], ...]
"""What a vector adds, with the hook points where it does."""


@dataclass(frozen=True, slots=True)
class FeatureTarget:
    """A feature that may be pushed."""

    dictionary: Dictionary
    feature: int

    @property
    def key(self) -> str:
        """The same for the same feature of the same contents."""
        return f"{self.dictionary.contents}/{self.feature}"


@dataclass(frozen=True, slots=True)
class VectorTarget:
    """A vector that may be added, at one or several hook points together."""

    layers: Layers

    @property
    def key(self) -> str:
        """The same for the same values at the same hook points."""
        digest = hashlib.sha256()
        for hook_name, values in self.layers:
            digest.update(f"{hook_name}\0{len(values)}\0".encode())
            digest.update(struct.pack(f"<{len(values)}d", *values))
        return digest.hexdigest()


Target = FeatureTarget | VectorTarget


class UnknownDosesError(Exception):
    """Doses must be measured before the steering can be resolved; all else about it is in order."""

    def __init__(self, targets: Sequence[Target]) -> None:
        """Keep what is to be measured."""
        super().__init__(f"{len(targets)} doses are not known yet")
        self.targets = tuple(targets)


class Scales(Protocol):
    """Looks up what is known. Not for an event loop, as it may read files, where `maximum` or `dose` is asked."""

    def maximum(self, target: FeatureTarget) -> float | None:
        """Return the feature's largest activation in the text of its interpretation; None without one."""

    def mean_norm(self, hook_name: str) -> float:
        """Return the mean norm of the vectors at a hook point of the model, sinks left out."""

    def dose(self, target: Target) -> float | None:
        """Return the raw scale of one dose; None where nothing that can be added comes to one.

        Raises:
            UnknownDosesError: it was never measured.
        """

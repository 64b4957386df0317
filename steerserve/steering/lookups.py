"""Stored vectors and presets, as edits see them: what they hold, and where edits look them up. No torch."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from steerserve.model.names import describe_hook_names, plain_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.wire.edits import Edit


@dataclass(frozen=True, slots=True)
class StoredVector:
    """A direction under a name, at one hook point or at several. Its contents never change."""

    name: str
    layers: Mapping[str, tuple[float, ...]]
    """The values at each hook point."""
    model: str | None
    """Which it was made for; None where that is not known."""
    method: str
    """How it was made, or in which format it came."""
    created: float
    """Unix time in seconds."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What else its maker wrote down."""

    @property
    def sha256(self) -> str:
        """Names all hook points and values."""
        digest = hashlib.sha256()
        for hook_name, values in sorted(self.layers.items()):
            digest.update(hook_name.encode() + b"\0" + struct.pack(f"<{len(values)}f", *values))
        return digest.hexdigest()

    def misfit(self, model_id: str | None, widths: Mapping[str, int]) -> str | None:
        """Say in a sentence why it cannot be used with a model of these hook points; None where it can."""
        if self.model is not None and model_id is not None and plain_name(self.model) != plain_name(model_id):
            return f"The vector {self.name!r} was made for {self.model!r}, and this server serves {model_id!r}."
        for hook_name, values in self.layers.items():
            if hook_name not in widths:
                offered = describe_hook_names(widths)
                return f"The vector {self.name!r} is for {hook_name}, which this model has not. It offers {offered}."
            if len(values) != widths[hook_name]:
                return (
                    f"The vector {self.name!r} has {len(values)} values at {hook_name}, and this model's vectors have "
                    f"{widths[hook_name]}."
                )
        return None


class VectorLookup(Protocol):
    """Where stored vectors are found."""

    def find(self, name: str) -> StoredVector:
        """Return a vector.

        Raises:
            NotFoundError: there is none of that name; the message says which there are.
            VectorError: its file cannot be used.
        """


class PresetEdits(Protocol):
    """A named set of edits. Its contents never change."""

    @property
    def name(self) -> str:
        """What requests call it."""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What it does."""


class PresetLookup(Protocol):
    """Where presets are found."""

    def find(self, name: str) -> PresetEdits:
        """Return a preset as it is now. Not for an event loop: it may read files.

        Raises:
            NotFoundError: there is none of that name; the message says which is nearest.
            PresetError: its file cannot be used, and never could since this server runs.
        """

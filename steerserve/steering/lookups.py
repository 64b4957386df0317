"""Stored vectors and presets as edits refer to them, and the protocols by which they are looked up. No torch."""

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
    """A named direction at one or several hook points. Its contents never change."""

    name: str
    layers: Mapping[str, tuple[float, ...]]
    """The values at each hook point."""
    model: str | None
    """The model that the vector was made for; None if the file does not say."""
    method: str
    """How the vector was made, or the format of its file."""
    created: float
    """When it was stored, as Unix time in seconds."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further notes of its maker."""

    @property
    def sha256(self) -> str:
        """SHA-256 of all hook points and values."""
        digest = hashlib.sha256()
        for hook_name, values in sorted(self.layers.items()):
            digest.update(hook_name.encode() + b"\0" + struct.pack(f"<{len(values)}f", *values))
        return digest.hexdigest()

    def misfit(self, model_id: str | None, widths: Mapping[str, int]) -> str | None:
        """Return a sentence that says why it does not fit a model with these hook points; None if it fits."""
        if self.model is not None and model_id is not None and plain_name(self.model) != plain_name(model_id):
            return f"The vector {self.name!r} was made for {self.model!r}, and this server serves {model_id!r}."
        for hook_name, values in self.layers.items():
            if hook_name not in widths:
                offered = describe_hook_names(widths)
                return (
                    f"The vector {self.name!r} is for {hook_name}, and this model does not have it. It has {offered}."
                )
            if len(values) != widths[hook_name]:
                return (
                    f"The vector {self.name!r} has {len(values)} values at {hook_name}, and this model needs "
                    f"{widths[hook_name]}."
                )
        return None


class VectorLookup(Protocol):
    """Looks up stored vectors."""

    def find(self, name: str) -> StoredVector:
        """Return the vector of that name.

        Raises:
            NotFoundError: no vector has that name; the message lists the names.
            VectorError: its file cannot be used.
        """


class PresetEdits(Protocol):
    """The edits of a preset. Its contents never change."""

    @property
    def name(self) -> str:
        """The preset's name."""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The preset's edits."""


class PresetLookup(Protocol):
    """Looks up presets."""

    def find(self, name: str) -> PresetEdits:
        """Return the preset as it is now. Not for an event loop: it may read files.

        Raises:
            NotFoundError: no preset has that name; the message suggests the most similar name.
            PresetError: its file is not valid, and no valid version was seen since the server started.
        """

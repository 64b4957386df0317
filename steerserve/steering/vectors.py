"""Stored steering vectors, as edits see them. No torch; not where they are kept."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from steerserve.model.hook_names import describe_hook_names
from steerserve.model.names import plain_name

if TYPE_CHECKING:
    from collections.abc import Mapping


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

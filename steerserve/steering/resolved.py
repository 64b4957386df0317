"""Resolved edits: bound to dictionary contents, in raw units, with the fingerprint that names them. No torch."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.gates import ResolvedGate
    from steerserve.wire.edits import Mode, Positions, Unit


@dataclass(frozen=True, slots=True)
class ResolvedEdit:
    """One checked edit, in raw units."""

    hook_name: str
    dictionary: Dictionary | None
    feature: int | None
    """Index of the feature; None for a vector."""
    vector: tuple[float, ...] | None
    """Values of the vector; None for a feature."""
    mode: Mode
    scale: float | None
    """The scale as the client wrote it; None for modes without a scale."""
    raw_scale: float | None
    positions: Positions
    start: int
    stop: int | None
    special_tokens: bool
    ramp: int = 0
    """Number of generated tokens from `start` on over which the change grows to its full size."""
    gate: ResolvedGate | None = None
    unit: Unit | None = None
    """Unit of `scale`; None for modes without a unit."""
    vector_name: str | None = None
    """Name of a stored vector. `vector` holds the values at the time of the request."""
    preset: str | None = None
    """Name of the preset that the edit belongs to."""
    control_seed: int | None = None
    """Seed of the rotation that turns a control's direction to a random one of the same length."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the dictionary's weights, or of the vector's values."""
        if self.dictionary is not None:
            return self.dictionary.sha256
        return hashlib.sha256(struct.pack(f"<{len(self.vector or ())}f", *(self.vector or ()))).hexdigest()

    @property
    def contents(self) -> str:
        """Identifier of all that decides what the edit does: the dictionary's contents, or the vector's values."""
        return self.dictionary.contents if self.dictionary is not None else self.sha256

    @property
    def has_effect(self) -> bool:
        """Whether the edit can change anything: adding 0 and multiplying by 1 cannot."""
        neutral = {"add": 0.0, "multiply": 1.0}.get(self.mode)
        return neutral is None or self.raw_scale != neutral

    @property
    def touches_prompt(self) -> bool:
        """Whether prompt tokens are edited."""
        return self.positions != "generated"

    @property
    def touches_generated(self) -> bool:
        """Whether generated tokens are edited."""
        return self.positions != "prompt"

    def identity(self) -> dict[str, object]:
        """Return the properties by which edits are compared."""
        return {
            "contents": self.contents,
            "hook": self.hook_name,
            "feature": self.feature,
            "mode": self.mode,
            "raw_scale": self.raw_scale,
            "positions": self.positions,
            "start": self.start,
            "stop": self.stop,
            "special_tokens": self.special_tokens,
            **({"ramp": self.ramp} if self.ramp else {}),
            **({"gate": self.gate.identity()} if self.gate is not None else {}),
            **({"control_seed": self.control_seed} if self.control_seed is not None else {}),
        }


@dataclass(frozen=True, slots=True)
class ResolvedSteering:
    """All edits of a request, and the strength that multiplies their changes."""

    edits: tuple[ResolvedEdit, ...]
    strength: float = 1.0

    @property
    def effective_edits(self) -> tuple[tuple[int, ResolvedEdit], ...]:
        """The edits that can change anything, with their indices in `edits`."""
        if self.strength == 0:
            return ()
        return tuple((index, edit) for index, edit in enumerate(self.edits) if edit.has_effect)

    @property
    def fingerprint(self) -> str:
        """Name of this set of edits: equal for the same edits, in any order, on the same dictionary contents."""
        return _digest([edit.identity() for edit in self.edits], self.strength)

    @property
    def prompt_key(self) -> str | None:
        """Name of what is done to prompt tokens; sequences with the same key can share a prompt. None if nothing is."""
        edits = [edit.identity() for _, edit in self.effective_edits if edit.touches_prompt]
        return _digest(edits, self.strength) if edits else None


def _digest(edits: list[dict[str, object]], strength: float) -> str:
    parts = sorted(json.dumps(edit, sort_keys=True) for edit in edits)
    return hashlib.sha256(json.dumps([parts, float(strength)]).encode()).hexdigest()[:32]

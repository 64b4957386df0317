"""What will be done to a request: edits bound to dictionary contents, in raw units, and what names them. No torch."""

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
    """One edit, checked, in raw units."""

    hook_name: str
    dictionary: Dictionary | None
    feature: int | None
    """None for a vector."""
    vector: tuple[float, ...] | None
    mode: Mode
    scale: float | None
    """As the client wrote it; None for modes without one."""
    raw_scale: float | None
    positions: Positions
    start: int
    stop: int | None
    special_tokens: bool
    ramp: int = 0
    """Generated tokens from `start` on over which the change grows to its whole size."""
    gate: ResolvedGate | None = None
    unit: Unit | None = None
    """What `scale` counts; None for modes without a unit."""
    vector_name: str | None = None
    """Of a stored vector; the values are those that were stored when the request came."""
    preset: str | None = None
    """The name of the preset that it came with."""
    control_seed: int | None = None
    """Of a control: names the rotation that turns what it writes to a random direction of the same length."""

    @property
    def sha256(self) -> str:
        """Of the dictionary's weights, or of the vector's values."""
        if self.dictionary is not None:
            return self.dictionary.sha256
        return hashlib.sha256(struct.pack(f"<{len(self.vector or ())}f", *(self.vector or ()))).hexdigest()

    @property
    def contents(self) -> str:
        """Names all that decides what the edit does: the dictionary's contents, or the vector's values."""
        return self.dictionary.contents if self.dictionary is not None else self.sha256

    @property
    def has_effect(self) -> bool:
        """Whether it can change anything: adding nothing and multiplying by one cannot."""
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
        """Return what makes two edits the same."""
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
    """All edits of a request, and how strongly they are applied."""

    edits: tuple[ResolvedEdit, ...]
    strength: float = 1.0

    @property
    def effective_edits(self) -> tuple[tuple[int, ResolvedEdit], ...]:
        """The edits that change anything, with their places in `edits`."""
        if self.strength == 0:
            return ()
        return tuple((place, edit) for place, edit in enumerate(self.edits) if edit.has_effect)

    @property
    def fingerprint(self) -> str:
        """The same for the same edits, in any order, on the same dictionary contents."""
        return _digest([edit.identity() for edit in self.edits], self.strength)

    @property
    def prompt_key(self) -> str | None:
        """Names what is done to prompt tokens, None for nothing: sequences of one key may share prompt computation."""
        edits = [edit.identity() for _, edit in self.effective_edits if edit.touches_prompt]
        return _digest(edits, self.strength) if edits else None


def _digest(edits: list[dict[str, object]], strength: float) -> str:
    parts = sorted(json.dumps(edit, sort_keys=True) for edit in edits)
    return hashlib.sha256(json.dumps([parts, float(strength)]).encode()).hexdigest()[:32]

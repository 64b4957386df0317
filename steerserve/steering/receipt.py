"""Receipts: what steering really did to a request. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.gates import ResolvedGate
    from steerserve.steering.resolved import ResolvedEdit, ResolvedSteering


@dataclass(frozen=True, slots=True)
class EditTally:
    """Sums over the tokens of one edit. `steerserve.steering.apply` counts them by these names."""

    num_edited: float = 0.0
    num_special: float = 0.0
    """Number of tokens in the edit's positions that were not edited because they are special."""
    num_sinks: float = 0.0
    """Number of tokens in the edit's positions that were not edited because they are sinks."""
    num_stopped: float = 0.0
    """Number of tokens that only the gate kept from being edited."""
    num_passed: float = 0.0
    """Number of tokens in the edit's positions that the gate lets pass, special tokens and sinks included."""
    sum_activation: float = 0.0
    """Sum of the activations at edited tokens."""
    sum_change: float = 0.0
    """Sum of |dx| / |x| at edited tokens."""


@dataclass(frozen=True, slots=True)
class SteeringReceipt:
    """The edits of a request with what each of them did."""

    steering: ResolvedSteering
    tallies: tuple[EditTally, ...]

    def as_json(self, label_of: Callable[[Dictionary, int], str | None]) -> dict[str, Any]:
        """Return the `steering` object of a response; `label_of` looks up a feature's label."""
        edits = self.steering.edits
        used = [edit.dictionary for edit in edits] + [edit.gate.dictionary for edit in edits if edit.gate is not None]
        warnings = list(
            dict.fromkeys(warning for dictionary in used if dictionary is not None for warning in dictionary.warnings)
        )
        return {
            "fingerprint": self.steering.fingerprint,
            "strength": self.steering.strength,
            **({"control": True} if any(edit.control_seed is not None for edit in self.steering.edits) else {}),
            "edits": [
                _edit_json(edit, tally, _label(edit, label_of))
                for edit, tally in zip(self.steering.edits, self.tallies, strict=True)
            ],
            **({"warnings": warnings} if warnings else {}),
        }


def make_receipt(steering: ResolvedSteering, sums: Sequence[Sequence[float]]) -> SteeringReceipt:
    """Build the receipt from the sums of each effective edit; the other edits did nothing.

    Args:
        steering: The edits.
        sums: One sequence for each effective edit, in the order of the fields of `EditTally`.
    """
    tallies = [EditTally() for _ in steering.edits]
    names = [field.name for field in fields(EditTally)]
    for (index, _), edit_sums in zip(steering.effective_edits, sums, strict=True):
        tallies[index] = EditTally(**dict(zip(names, edit_sums, strict=True)))
    return SteeringReceipt(steering, tuple(tallies))


def _label(edit: ResolvedEdit, label_of: Callable[[Dictionary, int], str | None]) -> str | None:
    return None if edit.dictionary is None or edit.feature is None else label_of(edit.dictionary, edit.feature)


def _edit_json(edit: ResolvedEdit, tally: EditTally, label: str | None) -> dict[str, Any]:
    edited = max(tally.num_edited, 1.0)
    skipped = {"special": int(tally.num_special), "sink": int(tally.num_sinks), "gate": int(tally.num_stopped)}
    return {
        "dictionary": edit.dictionary.id if edit.dictionary is not None else None,
        "sha256": edit.sha256,
        "hook": edit.hook_name,
        **({"vector": edit.vector_name} if edit.vector_name is not None else {}),
        **({"preset": edit.preset} if edit.preset is not None else {}),
        "feature": edit.feature,
        "label": label,
        "mode": edit.mode,
        "scale": edit.scale,
        "unit": edit.unit,
        "raw_scale": edit.raw_scale,
        "positions": edit.positions,
        **_window_json(edit),
        **({"gate": _gate_json(edit.gate, tally)} if edit.gate is not None else {}),
        **({"control_seed": edit.control_seed} if edit.control_seed is not None else {}),
        "tokens_edited": int(tally.num_edited),
        "tokens_skipped": sum(skipped.values()),
        "skipped": skipped,
        "mean_activation": _rounded(tally.sum_activation / edited),
        "mean_change": _rounded(tally.sum_change / edited),
    }


def _window_json(edit: ResolvedEdit) -> dict[str, int]:
    """Return start, stop and ramp, those that differ from their defaults."""
    window = {"start": edit.start or None, "stop": edit.stop, "ramp": edit.ramp or None}
    return {name: value for name, value in window.items() if value is not None}


def _gate_json(gate: ResolvedGate, tally: EditTally) -> dict[str, Any]:
    return {
        "feature": gate.feature,
        "dictionary": gate.dictionary.id,
        "hook": gate.hook_name,
        **({"above": gate.above} if gate.above is not None else {"below": gate.below}),
        "tokens_passed": int(tally.num_passed),
    }


def _rounded(value: float) -> float:
    """Keep six digits, which do not depend on the order in which steps were summed."""
    return float(f"{value:.6g}")

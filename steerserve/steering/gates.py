"""Gates: conditions on a feature, bound to dictionary contents and to the place where they are read. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError
from steerserve.model.names import ALL_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.dictionaries.registry import RegistrySnapshot
    from steerserve.wire.edits import Gate


@dataclass(frozen=True, slots=True)
class ResolvedGate:
    """Lets an edit touch a token only where `feature` is active enough, or little enough."""

    dictionary: Dictionary
    feature: int
    above: float | None
    below: float | None
    """One of the two is None."""

    @property
    def hook_name(self) -> str:
        """Where the feature is read, before this request's edits there."""
        return self.dictionary.read_hook_name

    def identity(self) -> dict[str, object]:
        """Return what makes two gates the same."""
        return {
            "contents": self.dictionary.contents,
            "feature": self.feature,
            "above": self.above,
            "below": self.below,
        }


def resolve_gate(gate: Gate, edited: Iterable[str], path: str, snapshot: RegistrySnapshot) -> ResolvedGate:
    """Bind a gate to a dictionary.

    Args:
        gate: As the client wrote it.
        edited: The hook points at which its edit changes anything.
        path: Where it was written.
        snapshot: The dictionaries that are loaded.

    Raises:
        InvalidRequestError: there is no such feature, or it is read only after an edit that needs it.
    """
    dictionary = snapshot.find(gate.dictionary, f"{path}.dictionary")
    check_feature(dictionary, gate.feature, path)
    resolved = ResolvedGate(dictionary, gate.feature, gate.above, gate.below)
    for hook_name in edited:
        if _depth(resolved.hook_name) > _depth(hook_name):
            message = (
                f"{path}: the gate is read at {resolved.hook_name}, which lies after {hook_name}, where the edit is "
                "made. A gate must sit at the same hook point or at an earlier one."
            )
            raise InvalidRequestError(message, param=path)
    return resolved


def check_feature(dictionary: Dictionary, feature: int, path: str) -> None:
    """Check that the dictionary has the feature that the object at `path` names.

    Raises:
        InvalidRequestError: it has not; the message says which it has.
    """
    if not 0 <= feature < dictionary.d_sae:
        message = (
            f"{path}.feature: dictionary {dictionary.id!r} has features 0 to {dictionary.d_sae - 1}, "
            f"and not {_short(feature)}."
        )
        raise InvalidRequestError(message, param=f"{path}.feature")


def _depth(hook_name: str) -> tuple[int, int]:
    """Return what sorts hook points as a forward pass reaches them."""
    _, block, kind = hook_name.split(".", 2)
    return int(block), ALL_KINDS.index(kind)


def _short(number: int) -> str:
    """Write a number that may have thousands of digits."""
    return str(number) if abs(number) < 10**20 else f"a number of {number.bit_length()} bits"

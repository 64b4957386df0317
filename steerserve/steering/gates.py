"""Gates: conditions on a feature, bound to dictionary contents and a hook point. `apply.decide` evaluates them."""

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
    """Lets an edit change a token only if the activation of `feature` is above or below a bound."""

    dictionary: Dictionary
    feature: int
    above: float | None
    below: float | None
    """Exactly one of the two bounds is None."""

    @property
    def hook_name(self) -> str:
        """The hook point where the feature is read, before this request's edits there."""
        return self.dictionary.read_hook_name

    def identity(self) -> dict[str, object]:
        """Return the properties by which gates are compared."""
        return {
            "contents": self.dictionary.contents,
            "feature": self.feature,
            "above": self.above,
            "below": self.below,
        }


def resolve_gate(gate: Gate, edited: Iterable[str], path: str, snapshot: RegistrySnapshot) -> ResolvedGate:
    """Bind a gate to a dictionary.

    Args:
        gate: The gate as the client wrote it.
        edited: The hook points that the gate's edit changes.
        path: Path of the gate in the request, for messages.
        snapshot: The loaded dictionaries.

    Raises:
        InvalidRequestError: the feature does not exist, or it is read after the hook point of the edit.
    """
    dictionary = snapshot.find(gate.dictionary, f"{path}.dictionary")
    check_feature(dictionary, gate.feature, path)
    resolved = ResolvedGate(dictionary, gate.feature, gate.above, gate.below)
    for hook_name in edited:
        if _depth(resolved.hook_name) > _depth(hook_name):
            message = (
                f"{path}: the gate reads {resolved.hook_name}, which comes after {hook_name}, the hook point of the "
                "edit. A gate must read the same hook point or an earlier one."
            )
            raise InvalidRequestError(message, param=path)
    return resolved


def check_feature(dictionary: Dictionary, feature: int, path: str) -> None:
    """Check that the dictionary has the feature that the object at `path` names.

    Raises:
        InvalidRequestError: it has no such feature; the message gives its range.
    """
    if not 0 <= feature < dictionary.d_sae:
        message = (
            f"{path}.feature: dictionary {dictionary.id!r} has features 0 to {dictionary.d_sae - 1}, "
            f"not {_short(feature)}."
        )
        raise InvalidRequestError(message, param=f"{path}.feature")


def _depth(hook_name: str) -> tuple[int, int]:
    """Return a key that sorts hook points in the order of a forward pass."""
    _, block, kind = hook_name.split(".", 2)
    return int(block), ALL_KINDS.index(kind)


def _short(number: int) -> str:
    """Write a number shortly, as a client may send one with thousands of digits."""
    return str(number) if abs(number) < 10**20 else f"a number of {number.bit_length()} bits"

"""Control arms: another arm's edits along random directions. No torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from steerserve.core.errors import InvalidRequestError
from steerserve.core.names import did_you_mean, short_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.steering.resolved import ResolvedSteering

_SEED_BYTES = 6
"""Every JSON reader holds a seed of so few bytes exactly."""


class NamedArm(NamedTuple):
    """What decides which arm controls which, before any steering is resolved."""

    name: str
    control_of: str | None
    has_own_edits: bool
    """Whether the arm names steering or presets of its own."""


def control_sources(arms: Sequence[NamedArm]) -> list[int | None]:
    """Return, for each arm, the index of the arm whose control it is; None if it is no control.

    Raises:
        InvalidRequestError: two arms have one name, or an arm cannot be a control of what it names.
    """
    indices: dict[str, int] = {}
    for index, arm in enumerate(arms):
        if (first := indices.setdefault(arm.name, index)) != index:
            message = f"arms[{first}] and arms[{index}] are both called {arm.name!r}. Give each arm a name of its own."
            raise InvalidRequestError(message, param=f"arms[{index}].name")
    return [_source(arms, indices, index) for index in range(len(arms))]


def controlled(arm: NamedArm, index: int, steering: ResolvedSteering | None) -> ResolvedSteering:
    """Return the steering that the control `arms[index]` repeats: that of the arm it names, if it has any.

    Raises:
        InvalidRequestError: the arm that it names has no steering.
    """
    if steering is None or not steering.edits:
        message = f"{arm.control_of!r} has no steering that a control could repeat. Name an arm with edits."
        raise InvalidRequestError(message, param=f"arms[{index}].control_of")
    return steering


def control_steering(steering: ResolvedSteering, seed: int, name: str) -> ResolvedSteering:
    """Return the same edits along random directions, which depend on the comparison's seed and the arm's name alone.

    All edits of the arm share one rotation of the space, so that their sum keeps its length too.
    """
    key = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=_SEED_BYTES).digest()
    control_seed = int.from_bytes(key, "little")
    return replace(steering, edits=tuple(replace(edit, control_seed=control_seed) for edit in steering.edits))


def _source(arms: Sequence[NamedArm], indices: dict[str, int], index: int) -> int | None:
    arm = arms[index]
    if arm.control_of is None:
        return None
    param = f"arms[{index}].control_of"
    source = indices.get(arm.control_of)
    if source is None:
        hint = did_you_mean(arm.control_of, indices)
        listed = ", ".join(repr(name) for name in indices if name != arm.name) or "none but this one"
        message = f"There is no arm {short_name(arm.control_of)!r}.{hint} The arms are {listed}."
        raise InvalidRequestError(message, param=param)
    if source == index:
        message = f"{arm.name!r} cannot be the control of itself. Name the arm whose edits it should repeat."
        raise InvalidRequestError(message, param=param)
    if arms[source].control_of is not None:
        message = f"{arm.control_of!r} is itself a control. Name the arm {arms[source].control_of!r} instead."
        raise InvalidRequestError(message, param=param)
    if arm.has_own_edits:
        message = (
            f"A control repeats the edits of {arm.control_of!r} and takes none of its own. Leave out its steering and "
            "presets, or control_of."
        )
        raise InvalidRequestError(message, param=f"arms[{index}].steering")
    return source

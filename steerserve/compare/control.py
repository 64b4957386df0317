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
"""So that every JSON reader holds the seed exactly."""


class NamedArm(NamedTuple):
    """What is checked of an arm before anything is resolved."""

    name: str
    control_of: str | None
    has_own_edits: bool
    """Whether it names steering, or presets, of its own."""


def control_sources(arms: Sequence[NamedArm]) -> list[int | None]:
    """Return, for each arm, the place of the arm that it controls.

    Raises:
        InvalidRequestError: two arms have one name, or an arm cannot be a control of what it names.
    """
    places: dict[str, int] = {}
    for place, arm in enumerate(arms):
        if (first := places.setdefault(arm.name, place)) != place:
            message = f"arms[{first}] and arms[{place}] are both called {arm.name!r}. Give each arm a name of its own."
            raise InvalidRequestError(message, param=f"arms[{place}].name")
    return [_source(arms, places, place) for place in range(len(arms))]


def controlled(arm: NamedArm, place: int, steering: ResolvedSteering | None) -> ResolvedSteering:
    """Return the steering that the arm at `place` repeats, given that of the arm it names.

    Raises:
        InvalidRequestError: there is none.
    """
    if steering is None or not steering.edits:
        message = f"{arm.control_of!r} has no steering that a control could repeat. Name an arm with edits."
        raise InvalidRequestError(message, param=f"arms[{place}].control_of")
    return steering


def control_steering(steering: ResolvedSteering, seed: int, name: str) -> ResolvedSteering:
    """Return the same edits along directions that are random, the same for the same comparison seed and arm name.

    All edits of the arm share one rotation of the space, so that their sum keeps its length too.
    """
    key = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=_SEED_BYTES).digest()
    control_seed = int.from_bytes(key, "little")
    return replace(steering, edits=tuple(replace(edit, control_seed=control_seed) for edit in steering.edits))


def _source(arms: Sequence[NamedArm], places: dict[str, int], place: int) -> int | None:
    arm = arms[place]
    if arm.control_of is None:
        return None
    param = f"arms[{place}].control_of"
    source = places.get(arm.control_of)
    if source is None:
        hint = did_you_mean(arm.control_of, places)
        listed = ", ".join(repr(name) for name in places if name != arm.name) or "none but this"
        message = f"There is no arm {short_name(arm.control_of)!r}.{hint} The arms are {listed}."
        raise InvalidRequestError(message, param=param)
    if source == place:
        message = f"{arm.name!r} cannot be the control of itself. Name the arm whose edits it is to repeat."
        raise InvalidRequestError(message, param=param)
    if arms[source].control_of is not None:
        message = f"{arm.control_of!r} is itself a control. Name the arm {arms[source].control_of!r} instead."
        raise InvalidRequestError(message, param=param)
    if arm.has_own_edits:
        message = (
            f"A control repeats the edits of {arm.control_of!r} and takes none of its own. Leave out its steering and "
            "presets, or control_of."
        )
        raise InvalidRequestError(message, param=f"arms[{place}].steering")
    return source

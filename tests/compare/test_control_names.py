"""Which arm may be the control of which."""

from __future__ import annotations

import pytest

from steerserve.compare.control import NamedArm, control_sources
from steerserve.core.errors import InvalidRequestError


def arm(name: str, control_of: str | None = None, *, has_own_edits: bool = False) -> NamedArm:
    return NamedArm(name, control_of, has_own_edits)


def test_a_control_may_stand_before_its_source() -> None:
    assert control_sources([arm("base"), arm("control", "steered"), arm("steered", has_own_edits=True)]) == [
        None,
        2,
        None,
    ]


@pytest.mark.parametrize(
    ("arms", "param", "says"),
    [
        ([arm("a"), arm("b"), arm("a")], "arms[2].name", "arms[0] and arms[2] are both called 'a'"),
        ([arm("steered"), arm("c", "stered")], "arms[1].control_of", "Did you mean 'steered'?"),
        ([arm("a", "a")], "arms[0].control_of", "control of itself"),
        ([arm("a"), arm("b", "a"), arm("c", "b")], "arms[2].control_of", "Name the arm 'a' instead"),
        ([arm("a"), arm("b", "a", has_own_edits=True)], "arms[1].steering", "takes none of its own"),
    ],
)
def test_what_cannot_be_a_control_is_refused(arms: list[NamedArm], param: str, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        control_sources(arms)
    assert caught.value.param == param
    assert says in caught.value.message

"""The served model: its names and its fingerprint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import InvalidRequestError, ModelNotFoundError

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

EDIT = [{"feature": 3, "scale": 8.0, "dictionary": "standard"}]


@pytest.mark.parametrize(("name", "error"), [("gpt-4", ModelNotFoundError), ("llama@formal", InvalidRequestError)])
def test_another_model_or_an_unknown_preset_is_refused(
    llama: Runtime, name: str, error: type[InvalidRequestError]
) -> None:
    llama.check_model("llama")
    with pytest.raises(error) as caught:
        llama.check_model(name)
    assert caught.value.param == "model"


def test_the_fingerprint_of_the_system_changes_with_the_steering_alone(llama: Runtime) -> None:
    other = [{"feature": 4, "scale": 8.0}]
    prints = [llama.system_fingerprint(llama.resolve_steering(steering)) for steering in (None, EDIT, other, EDIT)]
    assert prints[1] == prints[3]
    assert len(set(prints)) == 3


def test_a_preset_is_refused_where_nothing_is_generated(llama: Runtime) -> None:
    llama.check_plain_model(None)
    llama.check_plain_model("llama")
    with pytest.raises(InvalidRequestError) as caught:
        llama.check_plain_model("llama@formal")
    assert caught.value.param == "model"


def test_a_hook_point_that_the_model_does_not_have_is_refused_with_the_nearest(llama: Runtime) -> None:
    llama.check_hook("blocks.0.hook_resid_post", "hook")
    with pytest.raises(InvalidRequestError, match=r"Did you mean 'blocks\.0\.hook_resid_post'\?") as caught:
        llama.check_hook("blocks.0.hook_resid_pots", "hook[1]")
    assert caught.value.param == "hook[1]"

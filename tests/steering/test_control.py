"""Controls: the same change along a random direction."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from steerserve.compare.control import control_steering
from steerserve.steering.plan import SequenceEdits
from steerserve.steering.rotation import rotated
from steerserve.steering.site import TokenRole

if TYPE_CHECKING:
    from torch import Tensor

    from steerserve.runtime import Runtime
    from steerserve.steering.resolved import ResolvedSteering

HOOK_NAME = "blocks.0.hook_resid_post"
NUM_TOKENS = 6
VECTOR = [0.1 * (place % 7) - 0.3 for place in range(48)]
CASES: dict[str, Any] = {
    "add": [{"feature": 3, "scale": 4.0}],
    "clamp": [{"feature": 5, "mode": "clamp", "scale": 6.0}],
    "remove": [{"feature": 5, "mode": "remove"}],
    "vector": [{"vector": {"hook": HOOK_NAME, "values": VECTOR}, "scale": 3.0}],
    "several": {"edits": [{"feature": 3, "scale": 4.0}, {"feature": 4, "scale": 4.0}], "strength": -0.5},
    "topk": {
        "edits": [{"feature": f, "dictionary": "topk", "mode": "clamp", "scale": 4.0} for f in (1, 2)],
        "strength": -1.5,
    },
    "normalised": [{"feature": 3, "dictionary": "normalised", "scale": 2.0}],
    "gated": [{"feature": 3, "scale": 4.0, "when": {"feature": 7, "above": 0.3}}],
    "ramp": [{"feature": 3, "scale": 4.0, "positions": "generated", "ramp": 4}],
}


def resolved(runtime: Runtime, steering: object) -> ResolvedSteering:
    found = runtime.resolve_steering(steering)
    assert found is not None
    return found


@torch.inference_mode()
def change(runtime: Runtime, steering: ResolvedSteering, x: Tensor) -> Tensor:
    edits = SequenceEdits(steering, runtime.engine.median_norms, torch.device("cpu"))
    hooks = edits.generated_hooks([TokenRole(is_special=False, generated_index=place) for place in range(len(x))])
    edited = hooks[HOOK_NAME](x[None])
    assert edited is not None
    difference: Tensor = edited[0] - x
    return difference


@pytest.fixture
def x() -> Tensor:
    return 3 * torch.randn(NUM_TOKENS, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
def test_a_control_changes_every_token_by_as_much_and_in_another_direction(
    name: str, llama: Runtime, x: Tensor
) -> None:
    steering = resolved(llama, CASES[name])
    real, control = change(llama, steering, x), change(llama, control_steering(steering, 7, "control"), x)
    torch.testing.assert_close(control.norm(dim=-1), real.norm(dim=-1), atol=1e-4, rtol=1e-4)
    assert real.norm() > 0.1
    cosine = torch.nn.functional.cosine_similarity(real.flatten(), control.flatten(), dim=0)
    assert abs(float(cosine)) < 0.6


def test_a_rotation_keeps_lengths_and_angles_and_is_named_by_its_seed() -> None:
    vectors = torch.randn(5, 47, generator=torch.Generator().manual_seed(2))
    turned = rotated(vectors, 9)
    torch.testing.assert_close(turned @ turned.T, vectors @ vectors.T, atol=1e-4, rtol=1e-4)
    assert torch.equal(turned, rotated(vectors, 9))
    assert not torch.allclose(turned, rotated(vectors, 10))


def test_rotated_directions_are_spread_as_random_ones_are() -> None:
    """Cosines with the direction itself have mean 0 and variance 1 / width, also for one with a single component."""
    width, num_seeds = 64, 400
    for direction in (torch.eye(width)[5], torch.ones(width) / width**0.5):
        cosines = torch.stack([rotated(direction, seed) @ direction for seed in range(num_seeds)])
        assert abs(float(cosines.mean())) < 3 / (width * num_seeds) ** 0.5
        assert float(cosines.square().mean()) == pytest.approx(1 / width, rel=0.3)


def test_a_control_is_another_steering_and_says_so(llama: Runtime) -> None:
    steering = resolved(llama, CASES["several"])
    control = control_steering(steering, 7, "control")
    others = [control_steering(steering, 8, "control"), control_steering(steering, 7, "other")]
    fingerprints = {one.fingerprint for one in (steering, control, *others)}
    assert len(fingerprints) == 4
    assert control.fingerprint == control_steering(steering, 7, "control").fingerprint
    edits = SequenceEdits(control, llama.engine.median_norms, torch.device("cpu"))
    receipt = edits.receipt().as_json(lambda *_: None)
    assert receipt["control"] is True
    assert {edit["control_seed"] for edit in receipt["edits"]} == {control.edits[0].control_seed}
    plain = SequenceEdits(steering, llama.engine.median_norms, torch.device("cpu")).receipt()
    assert "control" not in plain.as_json(lambda *_: None)
    assert replace(control.edits[0], control_seed=None).identity() == steering.edits[0].identity()

"""What edits come to, as algebra: on random streams, and on planted dictionaries whose numbers paper can check."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steerserve.steering.plan import BatchPlan, SequenceEdits
from steerserve.steering.site import TokenRole
from tests.tiny import D_MODEL, HOOK_NAME

if TYPE_CHECKING:
    from torch import Tensor

    from steerserve.runtime import Runtime

PROMPT_TOKEN = TokenRole(is_special=False, generated_index=None)
QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = st.sampled_from(["standard", "topk", "jumprelu", "gated", "normalised", "raw", "planted"])
SEEDS = st.integers(0, 1 << 30)
SCALES = st.floats(-20, 20, allow_subnormal=False, width=32)
FEATURES = st.integers(0, 15)
ADDITIVE = st.fixed_dictionaries(
    {
        "feature": FEATURES,
        "mode": st.sampled_from(["add", "multiply"]),
        "scale": SCALES,
        "dictionary": NAMES,
    }
)
SETTING = st.fixed_dictionaries(
    {
        "feature": FEATURES,
        "mode": st.sampled_from(["clamp", "floor", "ceiling"]),
        "scale": SCALES,
        "dictionary": NAMES,
    }
)


def stream(seed: int, num_tokens: int = 5) -> Tensor:
    return 3 * torch.randn(num_tokens, D_MODEL, generator=torch.Generator().manual_seed(seed))


def opened(runtime: Runtime, steering: Any) -> SequenceEdits | None:  # noqa: ANN401 any spelling of steering
    resolved = runtime.resolve_steering(steering)
    medians = dict.fromkeys(runtime.lens.hook_names, 1e6)
    return SequenceEdits(resolved, medians, torch.device("cpu")) if resolved is not None else None


@torch.no_grad()
def steered(runtime: Runtime, x: Tensor, steering: Any) -> Tensor:  # noqa: ANN401
    """Return the stream after the edits; sinks are edited, as random streams have no median."""
    edits = steering["edits"] if isinstance(steering, dict) else steering
    strength = steering.get("strength", 1.0) if isinstance(steering, dict) else 1.0
    full = {"edits": [{"special_tokens": True, **edit} for edit in edits], "strength": strength}
    sequence = opened(runtime, full)
    hooks = sequence.prompt_hooks([PROMPT_TOKEN] * len(x)) if sequence is not None else {}
    for fn in hooks.values():
        out = fn(x[None])
        assert out is not None
        x = out[0]
    return x


def one_setting_each(edits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop edits that set what another sets already, which a request may not do."""
    return list(
        {(edit["dictionary"], edit["feature"], edit["mode"] in {"add", "multiply"}): edit for edit in edits}.values()
    )


@QUICK
@given(
    edits=st.lists(st.one_of(ADDITIVE, SETTING), min_size=2, max_size=6).map(one_setting_each),
    seed=SEEDS,
    shuffle=SEEDS,
    strength=st.floats(-2, 2, width=32),
)
def test_the_order_of_edits_does_not_matter(
    llama: Runtime, edits: list[dict[str, Any]], seed: int, shuffle: int, strength: float
) -> None:
    x = stream(seed)
    other = random.Random(shuffle).sample(edits, len(edits))
    one, two = (steered(llama, x, {"edits": order, "strength": strength}) for order in (edits, other))
    torch.testing.assert_close(one, two, atol=2e-3, rtol=1e-5)


@QUICK
@given(name=NAMES, feature=FEATURES, scale=SCALES, seed=SEEDS)
def test_an_edit_and_its_opposite_cancel(llama: Runtime, name: str, feature: int, scale: float, seed: int) -> None:
    x = stream(seed)
    edits = [{"feature": feature, "dictionary": name, "scale": sign * scale} for sign in (1, -1)]
    torch.testing.assert_close(steered(llama, x, edits), x, atol=1e-4, rtol=1e-5)


@QUICK
@given(name=NAMES, feature=FEATURES, seed=SEEDS)
def test_clamping_to_the_present_value_changes_nothing(llama: Runtime, name: str, feature: int, seed: int) -> None:
    x = stream(seed, 1)
    sae = llama.registry.snapshot().dictionaries[name].sae
    with torch.no_grad():
        present = float(sae.encode(x)[0, feature])
    for mode in ("clamp", "floor", "ceiling"):
        edit = {"feature": feature, "dictionary": name, "mode": mode, "scale": present}
        torch.testing.assert_close(steered(llama, x, [edit]), x, atol=1e-4, rtol=0)


@QUICK
@given(name=NAMES, feature=FEATURES, seed=SEEDS)
def test_ablating_multiplying_by_zero_and_clamping_to_zero_are_one(
    llama: Runtime, name: str, feature: int, seed: int
) -> None:
    x = stream(seed)
    ways = ({"mode": "ablate"}, {"mode": "multiply", "scale": 0.0}, {"mode": "clamp", "scale": 0.0})
    ablated, *others = (steered(llama, x, [{"feature": feature, "dictionary": name, **way}]) for way in ways)
    assert all(torch.equal(ablated, other) for other in others)


@QUICK
@given(feature=FEATURES, scale=SCALES, seed=SEEDS)
def test_a_floor_only_raises_and_a_ceiling_only_lowers(llama: Runtime, feature: int, scale: float, seed: int) -> None:
    x = stream(seed)
    for mode, sign in (("floor", 1), ("ceiling", -1)):
        edit = {"feature": feature, "dictionary": "planted", "mode": mode, "scale": scale}
        moved = sign * (steered(llama, x, [edit]) - x)
        assert (moved >= 0).all()
        assert (moved[:, [place for place in range(D_MODEL) if place != feature]] == 0).all()


@QUICK
@given(name=NAMES, feature=FEATURES, seed=SEEDS)
def test_removing_a_direction_leaves_nothing_along_it_and_all_else(
    llama: Runtime, name: str, feature: int, seed: int
) -> None:
    x = stream(seed)
    out = steered(llama, x, [{"feature": feature, "dictionary": name, "mode": "remove"}])
    direction = llama.registry.snapshot().dictionaries[name].sae.W_dec[feature].detach()
    unit = direction / direction.norm()
    assert (out @ unit).abs().max() < 1e-4
    torch.testing.assert_close(out + (x @ unit)[:, None] * unit, x, atol=1e-4, rtol=0)


@QUICK
@given(name=NAMES, feature=FEATURES, scale=SCALES, strength=st.floats(-3, 3, width=32), seed=SEEDS)
def test_strength_scales_the_whole_change(
    llama: Runtime, name: str, feature: int, scale: float, strength: float, seed: int
) -> None:
    x = stream(seed)
    edits = [{"feature": feature, "dictionary": name, "scale": scale}, {"feature": 1, "mode": "remove"}]
    whole, part = (steered(llama, x, {"edits": edits, "strength": value}) - x for value in (1.0, strength))
    torch.testing.assert_close(part, strength * whole, atol=1e-3, rtol=1e-4)


def test_all_edits_read_the_same_unedited_stream(llama: Runtime) -> None:
    x = torch.zeros(1, D_MODEL)
    x[0, 2] = 3.0
    edits: list[dict[str, Any]] = [
        {"feature": 2, "scale": 10.0},
        {"feature": 2, "mode": "multiply", "scale": 2.0},
        {"feature": 2, "mode": "clamp", "scale": 1.0},
        {"feature": 2, "mode": "remove"},
    ]
    out = steered(llama, x, [{"dictionary": "planted", **edit} for edit in edits])
    # 3, and of the 3 that all see: +10, +(2 - 1) * 3, +(1 - 3), -3
    assert float(out[0, 2]) == 11.0
    assert out.count_nonzero() == 1


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        ({"scale": 2.0}, 3.0, 5.0),
        ({"scale": 2.0}, -3.0, -1.0),
        ({"mode": "clamp", "scale": 2.0}, 3.0, 2.0),
        ({"mode": "clamp", "scale": 2.0}, -3.0, -1.0),  # an inactive feature is 0, not -3
        ({"mode": "multiply", "scale": 3.0}, 3.0, 9.0),
        ({"mode": "multiply", "scale": 3.0}, -3.0, -3.0),
        ({"mode": "ablate"}, 3.0, 0.0),
        ({"mode": "ablate"}, -3.0, -3.0),
        ({"mode": "floor", "scale": 4.0}, 3.0, 4.0),
        ({"mode": "floor", "scale": 2.0}, 3.0, 3.0),
        ({"mode": "floor", "scale": -1.0}, 3.0, 3.0),
        ({"mode": "ceiling", "scale": 2.0}, 3.0, 2.0),
        ({"mode": "ceiling", "scale": 4.0}, 3.0, 3.0),
        ({"mode": "ceiling", "scale": -1.0}, -3.0, -4.0),
        ({"mode": "remove"}, 3.0, 0.0),
        ({"mode": "remove"}, -3.0, 0.0),
    ],
)
def test_each_mode_does_what_its_formula_says(
    llama: Runtime, edit: dict[str, Any], before: float, after: float
) -> None:
    x = torch.zeros(1, D_MODEL)
    x[0, 4] = before
    out = steered(llama, x, [{"feature": 4, "dictionary": "planted", **edit}])
    assert float(out[0, 4]) == after
    assert out.count_nonzero() == (after != 0)


ROWS: list[Any] = [
    [{"feature": 3, "scale": 2.0}],
    [{"feature": place, "scale": 2.0, "mode": "clamp"} for place in range(17)],
    [{"feature": 3, "dictionary": "topk", "scale": 2.0}, {"feature": 5, "mode": "remove"}],
    [{"feature": 3, "dictionary": "gated", "mode": "floor", "scale": 2.0}, {"feature": 9, "mode": "ablate"}],
    None,
    [{"vector": {"hook": HOOK_NAME, "values": [1.0] * D_MODEL}, "scale": 0.3}],
]


@QUICK
@given(neighbours=st.lists(st.integers(0, len(ROWS) - 1), max_size=5), mine=st.integers(0, len(ROWS) - 1), seed=SEEDS)
def test_a_row_has_the_same_bits_whatever_edits_its_neighbours_carry(
    llama: Runtime, neighbours: list[int], mine: int, seed: int
) -> None:
    x = stream(seed, 1 + len(neighbours))
    token = TokenRole(is_special=False, generated_index=0)

    def row_alone_or_among(numbers: list[int], resid: Tensor) -> Tensor:
        plan = BatchPlan([opened(llama, ROWS[number]) for number in numbers])
        for fn in plan.hooks([token] * len(numbers)).values():
            out = fn(resid)
            assert out is not None
            resid = out
        return resid[0]

    with torch.no_grad():
        among = row_alone_or_among([mine, *neighbours], x[:, None].clone())
        alone = row_alone_or_among([mine], x[:1, None].clone())
    assert torch.equal(among, alone)


@pytest.mark.parametrize(
    "steering",
    [
        {"edits": [{"feature": 3, "scale": 5.0}], "strength": 0.0},
        [{"feature": 3, "scale": 0.0}],
        [{"feature": 3, "mode": "multiply", "scale": 1.0}],
    ],
)
def test_what_changes_nothing_is_not_even_computed(llama: Runtime, steering: Any) -> None:  # noqa: ANN401
    sequence = opened(llama, steering)
    assert sequence is not None
    assert sequence.prompt_hooks([PROMPT_TOKEN]) == {}
    assert BatchPlan([sequence]).hooks([PROMPT_TOKEN]) == {}


def test_low_precision_streams_are_edited_in_float32_and_stay_what_they_were(llama: Runtime) -> None:
    x = torch.zeros(1, D_MODEL)
    x[0, 4] = 3.0
    sequence = opened(llama, [{"feature": 4, "dictionary": "planted", "scale": 0.5, "special_tokens": True}])
    assert sequence is not None
    with torch.no_grad():
        out = sequence.prompt_hooks([PROMPT_TOKEN])[HOOK_NAME](x.bfloat16()[None])
    assert out is not None
    assert out.dtype is torch.bfloat16
    assert float(out[0, 0, 4]) == 3.5


@pytest.mark.parametrize("name", ["standard", "topk"])
@torch.no_grad()
def test_a_receipt_is_right_where_the_square_of_the_stream_overflows(llama: Runtime, name: str) -> None:
    edit = {"feature": 3, "dictionary": name, "mode": "remove", "special_tokens": True}
    sequence = opened(llama, {"edits": [edit], "strength": -1000})
    assert sequence is not None
    x = stream(1) * 1e22
    out = sequence.prompt_hooks([PROMPT_TOKEN] * len(x))[HOOK_NAME](x[None])
    assert out is not None
    expected = ((out[0].double() - x.double()).norm(dim=-1) / x.double().norm(dim=-1)).mean()
    [found] = sequence.receipt().as_json(lambda *_: None)["edits"]
    assert found["mean_change"] == pytest.approx(float(expected), rel=1e-4)
    assert found["mean_change"] > 10


@pytest.mark.parametrize("mode", ["remove", "multiply"])
@pytest.mark.parametrize("name", ["standard", "topk"])
@torch.no_grad()
def test_a_receipt_stays_finite_where_the_stream_does_not(llama: Runtime, name: str, mode: str) -> None:
    edit = {"feature": 3, "dictionary": name, "mode": mode, "special_tokens": True}
    edit |= {"scale": 1e6} if mode == "multiply" else {}
    for start in (1e30, 1e37, math.inf):
        sequence = opened(llama, {"edits": [edit], "strength": -1000})
        assert sequence is not None
        for x in (stream(1) * start, stream(2) * 1e-30, torch.full((5, D_MODEL), math.nan)):
            sequence.prompt_hooks([PROMPT_TOKEN] * len(x))[HOOK_NAME](x[None])
        [found] = sequence.receipt().as_json(lambda *_: None)["edits"]
        assert math.isfinite(found["mean_change"])
        assert math.isfinite(found["mean_activation"])

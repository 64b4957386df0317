"""Gates and ramps as algebra, on planted dictionaries whose numbers paper can check and on random ones."""

from __future__ import annotations

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
BOUNDS = st.one_of(
    st.fixed_dictionaries({"above": st.floats(-1, 3, width=32)}),
    st.fixed_dictionaries({"below": st.floats(-1, 3, width=32)}),
)
GATES = st.builds(
    lambda feature, name, bound: {"feature": feature, "dictionary": name, **bound}, FEATURES, NAMES, BOUNDS
)
MODES: list[dict[str, Any]] = [
    {"scale": 2.0},
    {"mode": "clamp", "scale": 2.0},
    {"mode": "multiply", "scale": 3.0},
    {"mode": "ablate"},
    {"mode": "floor", "scale": 2.0},
    {"mode": "ceiling", "scale": 0.5},
    {"mode": "remove"},
]
WRITTEN: list[dict[str, Any]] = [
    *({"feature": 3, "dictionary": name, **how} for name in ("standard", "topk", "normalised") for how in MODES),
    {"vector": {"hook": HOOK_NAME, "values": [1.0] * D_MODEL}, "scale": 1.0},
    {"vector": {"hook": HOOK_NAME, "values": [1.0] * D_MODEL}, "mode": "remove"},
]


def stream(seed: int, num_tokens: int = 5) -> Tensor:
    return 3 * torch.randn(num_tokens, D_MODEL, generator=torch.Generator().manual_seed(seed))


def opened(runtime: Runtime, edits: list[dict[str, Any]], strength: float = 1.0) -> SequenceEdits:
    """Open edits; sinks are edited, as random streams have no median."""
    full = {"edits": [{"special_tokens": True, **edit} for edit in edits], "strength": strength}
    resolved = runtime.resolve_steering(full)
    assert resolved is not None
    return SequenceEdits(resolved, dict.fromkeys(runtime.lens.hook_names, 1e6), torch.device("cpu"))


def flowed(hooks: dict[str, Any], value: Tensor) -> Tensor:
    """Let a value pass one hook point."""
    out = hooks[HOOK_NAME](value)
    assert out is not None
    return out  # type: ignore[no-any-return]


@torch.no_grad()
def steered(runtime: Runtime, x: Tensor, edits: list[dict[str, Any]], strength: float = 1.0) -> Tensor:
    hooks = opened(runtime, edits, strength).prompt_hooks([PROMPT_TOKEN] * len(x))
    return flowed(hooks, x[None])[0] if hooks else x


@torch.no_grad()
def decoded(runtime: Runtime, x: Tensor, edits: list[dict[str, Any]], index: int) -> Tensor:
    """Return the stream after the edits of one row whose tokens are all the generated one of that index."""
    plan = BatchPlan([opened(runtime, edits)] * len(x))
    token = TokenRole(is_special=False, generated_index=index)
    return flowed(plan.hooks([token] * len(x)), x[:, None])[:, 0]


def same_bits(one: Tensor, two: Tensor) -> bool:
    kind = torch.int16 if one.dtype is torch.bfloat16 else torch.int32
    return torch.equal(one.view(kind), two.view(kind))


@pytest.mark.parametrize("bound", [{"above": 1.0}, {"below": 1.0}])
def test_a_gate_is_strict_and_reads_each_token_by_itself(llama: Runtime, bound: dict[str, float]) -> None:
    x = torch.zeros(4, D_MODEL)
    x[:, 2] = torch.tensor([0.5, 1.0, 1.5, -4.0])  # the planted feature 2 is 0.5, 1, 1.5 and 0
    gate = {"feature": 2, "dictionary": "planted", **bound}
    sequence = opened(llama, [{"feature": 4, "dictionary": "planted", "scale": 3.0, "when": gate}])
    with torch.no_grad():
        out = flowed(sequence.prompt_hooks([PROMPT_TOKEN] * 4), x[None])[0]
    passed = [False, False, True, False] if "above" in bound else [True, False, False, True]
    assert out[:, 4].tolist() == [3.0 * passes for passes in passed]
    assert torch.equal(out[:, 2], x[:, 2])
    [edit] = sequence.receipt().as_json(lambda *_: None)["edits"]
    assert edit["tokens_edited"] == edit["gate"]["tokens_passed"] == sum(passed)
    assert edit["skipped"] == {"special": 0, "sink": 0, "gate": 4 - sum(passed)}


def test_a_gate_reads_what_no_edit_of_its_hook_point_has_touched(llama: Runtime) -> None:
    x = torch.zeros(1, D_MODEL)
    edits: list[dict[str, Any]] = [
        {"feature": 2, "scale": 10.0},
        {"feature": 4, "scale": 1.0, "when": {"feature": 2, "dictionary": "planted", "above": 1.0}},
    ]
    out = steered(llama, x, [{"dictionary": "planted", **edit} for edit in edits])
    assert float(out[0, 2]) == 10.0
    assert float(out[0, 4]) == 0.0


@pytest.mark.parametrize("edit", MODES)
@pytest.mark.parametrize(("start", "ramp"), [(0, 4), (2, 4), (1, 1), (0, 3)])
def test_a_ramp_multiplies_the_change_of_every_mode(
    llama: Runtime, edit: dict[str, Any], start: int, ramp: int
) -> None:
    x = torch.zeros(2, D_MODEL)
    x[:, 4] = torch.tensor([3.0, 1.0])
    edit = {"feature": 4, "dictionary": "planted", **edit}
    whole = decoded(llama, x, [edit], 0) - x
    for index in range(8):
        window = {"positions": "generated", "start": start, "ramp": ramp}
        part = decoded(llama, x, [{**edit, **window}], index) - x
        share = min(1.0, (index - start + 1) / ramp) if index >= start else 0.0
        torch.testing.assert_close(part, share * whole, atol=1e-6, rtol=0)


@QUICK
@given(gate=GATES, seed=SEEDS, shuffle=SEEDS)
def test_the_order_of_gated_edits_does_not_change_a_bit(
    llama: Runtime, gate: dict[str, Any], seed: int, shuffle: int
) -> None:
    edits = [{**edit, **({"when": gate} if place % 2 else {})} for place, edit in enumerate(WRITTEN) if place % 7 < 3]
    other = random.Random(shuffle).sample(edits, len(edits))
    edits, other = ([edit for edit in order if edit.get("mode") != "ablate"] for order in (edits, other))
    x = stream(seed)
    assert same_bits(steered(llama, x, edits), steered(llama, x, other))
    assert same_bits(decoded(llama, x, edits, 0), decoded(llama, x, other, 0))


@QUICK
@given(name=NAMES, feature=FEATURES, scale=SCALES, gate=GATES, seed=SEEDS)
def test_an_edit_and_its_opposite_behind_the_same_gate_cancel(
    llama: Runtime, name: str, feature: int, scale: float, gate: dict[str, Any], seed: int
) -> None:
    x = stream(seed)
    edits = [{"feature": feature, "dictionary": name, "scale": sign * scale, "when": gate} for sign in (1, -1)]
    torch.testing.assert_close(steered(llama, x, edits), x, atol=1e-4, rtol=1e-5)


@QUICK
@given(name=NAMES, feature=FEATURES, scale=SCALES, gate=GATES, seed=SEEDS)
def test_a_gate_and_its_contrary_add_up_to_the_edit_without(
    llama: Runtime, name: str, feature: int, scale: float, gate: dict[str, Any], seed: int
) -> None:
    bound = gate.get("above", gate.get("below"))
    read = llama.registry.snapshot().dictionaries[gate["dictionary"]]
    x = stream(seed)
    with torch.no_grad():
        acts = read.encode(x)[:, gate["feature"]]
    contrary = {"feature": gate["feature"], "dictionary": gate["dictionary"]}
    contrary |= {"below": bound} if "above" in gate else {"above": bound}
    edit = {"feature": feature, "dictionary": name, "scale": scale}
    both = steered(llama, x, [{**edit, "when": gate}, {**edit, "when": contrary}])
    whole = steered(llama, x, [edit])
    passed = acts != bound
    torch.testing.assert_close(both[passed], whole[passed], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(both[~passed], x[~passed])


@QUICK
@given(name=NAMES, feature=FEATURES, gate=GATES, seed=SEEDS)
def test_clamping_to_the_present_value_changes_nothing_behind_any_gate(
    llama: Runtime, name: str, feature: int, gate: dict[str, Any], seed: int
) -> None:
    x = stream(seed, 1)
    with torch.no_grad():
        present = float(llama.registry.snapshot().dictionaries[name].encode(x)[0, feature])
    for mode in ("clamp", "floor", "ceiling"):
        edit = {"feature": feature, "dictionary": name, "mode": mode, "scale": present, "when": gate}
        torch.testing.assert_close(steered(llama, x, [edit]), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edit", WRITTEN)
def test_what_a_gate_keeps_out_has_its_bits(llama: Runtime, edit: dict[str, Any], dtype: torch.dtype) -> None:
    x = stream(1).to(dtype)
    x[:, ::5] = -0.0
    x[0, 3] = 1e-40  # a denormal
    closed = {**edit, "when": {"feature": 3, "above": 1e5}}
    assert same_bits(steered(llama, x, [closed]), x)
    assert same_bits(decoded(llama, x, [closed], 0), x)
    assert same_bits(steered(llama, x, [edit], strength=0.0), x)
    x[:, 4] = torch.tensor([-1.0, 0.5, 1.0, 2.0, 3.0])
    partly = {**edit, "when": {"feature": 4, "dictionary": "planted", "above": 1.0}}
    kept = torch.tensor([True, True, True, False, False])
    for way in (steered(llama, x, [partly]), decoded(llama, x, [partly], 0)):
        assert same_bits(way[kept], x[kept])


def test_neighbours_without_edits_keep_their_bits(llama: Runtime) -> None:
    x = stream(2, 3).bfloat16()
    x[:, ::5] = -0.0
    plan = BatchPlan([None, opened(llama, WRITTEN[:1]), None])
    token = TokenRole(is_special=False, generated_index=0)
    with torch.no_grad():
        out = flowed(plan.hooks([token] * 3), x[:, None])[:, 0]
    assert same_bits(out[::2], x[::2])
    assert not same_bits(out[1:2], x[1:2])


def test_a_hook_point_where_things_are_only_read_is_left_as_it_is(llama: Runtime) -> None:
    late = {"feature": 3, "dictionary": "late", "scale": 1.0, "when": {"feature": 3, "above": 0.1}}
    sequence = opened(llama, [late])
    hooks = sequence.prompt_hooks([PROMPT_TOKEN] * 5)
    assert set(hooks) == {"blocks.1.hook_resid_post", HOOK_NAME}
    with torch.no_grad():
        assert hooks[HOOK_NAME](stream(0)[None]) is None


def test_a_feature_that_several_go_by_is_read_once(llama: Runtime) -> None:
    edits = [
        {"feature": 3, "scale": 1.0, "when": {"feature": 3, "above": 0.1}},
        {"feature": 4, "scale": 1.0, "when": {"feature": 3, "above": 0.2}},
        {"feature": 5, "scale": 1.0, "dictionary": "topk", "when": {"feature": 4, "below": 0.2}},
    ]
    reads = opened(llama, edits).generated.parts[HOOK_NAME].reads
    assert reads is not None
    assert reads.encoder.shape == (1, 2, D_MODEL)

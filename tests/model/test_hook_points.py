"""Values at hook points, and edits of them, against TransformerLens' own bridge, whose blocks it computes itself."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import AutoModelForCausalLM

from steerserve.model.hook_check import working_points
from steerserve.model.hook_locations import _norm_of
from steerserve.model.hook_points import ModulePoint
from steerserve.model.lens import LensModel, load_lens
from steerserve.model.names import (
    ALL_KINDS,
    KINDS,
    LN2_NORMALIZED,
    MLP_OUT,
    READ_KINDS,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    STREAM_INTO_MLP,
    describe_hook_names,
)
from tests.model.architectures import GROUPED, SERVED, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from steerserve.model.hook_points import HookFn

pytestmark = pytest.mark.slow

GPT2 = {"n_positions": 128, "n_embd": 48, "n_layer": 2, "n_head": 4}
SEQUENTIAL: dict[str, dict[str, Any]] = {
    **{name: SERVED[name] for name in ("Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3", "Phi3", "OPT")},
    "Llama": GROUPED,
    "GPT2": GPT2,
    "Wide": GROUPED | {"head_dim": 20},
    "FalconInRow": {"parallel_attn": False},
    "NeoXInRow": {"use_parallel_residual": False},
    "PlainGranite": {"residual_multiplier": 1.0},
    "Olmo2": {},
    "Granite": GROUPED | {"residual_multiplier": 0.3},
    "Mixtral": GROUPED | {"num_local_experts": 4},
}
PARALLEL = {name: SERVED[name] for name in ("Phi", "GPTNeoX", "Falcon")}
VARIANTS = {"Wide": "Qwen3", "FalconInRow": "Falcon", "NeoXInRow": "GPTNeoX", "PlainGranite": "Granite"}
IDS = torch.tensor([[7, 8, 9, 10, 11], [200, 3, 3, 90, 41]])


@functools.cache
def models(name: str, root: Path) -> tuple[LensModel, Any]:
    """Return the served model and TransformerLens' own of the same weights."""
    extra = (SEQUENTIAL | PARALLEL)[name]
    files = write_model(VARIANTS.get(name, name), extra, root / name, std=0.15)
    lens = load_lens(replace(files, id=name), device="cpu")
    hf_model = AutoModelForCausalLM.from_pretrained(files.path, attn_implementation="eager", dtype=torch.float32).eval()
    return lens, build_bridge_from_module(hf_model, type(hf_model).__name__, hf_config=hf_model.config)


@pytest.fixture(params=[*SEQUENTIAL, *PARALLEL])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LensModel, Any]:
    return models(request.param, tmp_path_factory.getbasetemp())


def test_hook_points_are_those_that_the_architecture_has(both: tuple[LensModel, Any]) -> None:
    lens, _ = both
    kinds = [kind for kind in KINDS if kind != RESID_MID or lens.id not in PARALLEL]
    assert lens.hook_names == tuple(f"blocks.{layer}.{kind}" for layer in range(2) for kind in kinds)


def test_what_an_mlp_reads_can_be_read_and_not_edited(both: tuple[LensModel, Any]) -> None:
    lens, _ = both
    # Phi and Falcon have one norm, that of the attention, for both parts of a block.
    missing = {STREAM_INTO_MLP, LN2_NORMALIZED} if lens.id in {"Phi", "Falcon"} else set()
    missing |= {RESID_MID} if lens.id in PARALLEL else set()
    kinds = [kind for kind in ALL_KINDS if kind not in missing]
    assert lens.readable == tuple(f"blocks.{layer}.{kind}" for layer in range(2) for kind in kinds)
    assert not any(name.endswith(READ_KINDS) for name in lens.hook_names)
    for hook_name in set(lens.readable) - set(lens.hook_names):
        with lens.hooked(hook_name, torch.zeros_like), pytest.raises(RuntimeError, match="not replaced"):
            lens.forward(IDS, use_cache=False)


@torch.inference_mode()
@pytest.mark.parametrize("is_read_first", [True, False])
def test_what_an_mlp_reads_is_the_edited_stream(both: tuple[LensModel, Any], is_read_first: bool) -> None:
    lens, _ = both
    if lens.id in PARALLEL:
        pytest.skip("there the MLP reads the stream before the block")
    put = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    mid = "blocks.1.hook_resid_mid"
    found: dict[str, Tensor] = {}
    wanted = [name for name in lens.readable if name.startswith("blocks.1.") and name.endswith(READ_KINDS)]
    plain = lens.read(IDS, wanted)
    with contextlib.ExitStack() as stack:
        hooks: dict[str, HookFn] = {name: functools.partial(found.__setitem__, name) for name in wanted}
        edits: dict[str, HookFn] = {mid: lambda _: put.clone()}
        for name, fn in ({**hooks, **edits} if is_read_first else {**edits, **hooks}).items():
            stack.enter_context(lens.hooked(name, fn))
        lens.forward(IDS, use_cache=False)
    assert torch.equal(found[f"blocks.1.{STREAM_INTO_MLP}"], put)
    assert all((found[name] - plain[name]).abs().max() > 1e-2 for name in wanted)


@torch.inference_mode()
def test_values_equal_transformer_lenss(both: tuple[LensModel, Any]) -> None:
    lens, bridge = both
    bridge.set_use_hook_mlp_in(True)
    _, cache = bridge.run_with_cache(IDS)
    for hook_name, value in lens.read(IDS, lens.readable).items():
        assert value.shape == (2, 5, lens.width(hook_name))
        # OPT's MLP is no module, and TransformerLens hooks its first layer alone.
        theirs = hook_name.replace("mlp.hook_in", "mlp.in.hook_in") if lens.id == "OPT" else hook_name
        torch.testing.assert_close(value, cache[theirs].reshape(value.shape), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_replacing_a_value_gives_transformer_lenss_logits(both: tuple[LensModel, Any]) -> None:
    lens, bridge = both
    plain = lens.forward(IDS, use_cache=False)
    for hook_name in lens.hook_names:
        width = lens.width(hook_name)
        put = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1))
        with lens.hooked(hook_name, lambda _, put=put: put.clone()):  # type: ignore[misc]
            logits = lens.forward(IDS, use_cache=False)
        torch.testing.assert_close(logits, bridge_logits(bridge, hook_name, put), atol=1e-4, rtol=1e-4)
        assert (logits - plain).abs().max() > 1e-2


def bridge_logits(bridge: Any, hook_name: str, put: Tensor) -> Tensor:  # noqa: ANN401
    """Return TransformerLens' logits with `put` in place of the value at a hook point.

    Its bridge gives a replaced `hook_resid_mid` to the MLP alone (HookedTransformer: to the sum as well), so that the
    change is added to the block's output by hand.
    """
    changes: list[Tensor] = []

    def replace(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 TransformerLens passes it by name
        changes.append(put.reshape(value.shape) - value)
        return put.reshape(value.shape)

    def add(resid: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        return resid + changes[0]

    hooks: list[tuple[str, Any]] = [(hook_name, replace)]
    if hook_name.endswith(RESID_MID):
        hooks.append((hook_name.replace(RESID_MID, RESID_POST), add))
    logits: Tensor = bridge.run_with_hooks(IDS, fwd_hooks=hooks)
    return logits


def hooks_of(model: nn.Module) -> int:
    """Count the torch hooks on all modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_no_hook_is_left_behind(both: tuple[LensModel, Any]) -> None:
    lens, _ = both
    assert hooks_of(lens.weights) == 0
    for hook_name in lens.readable:
        detach = lens.attach(hook_name, lambda _: None)
        assert hooks_of(lens.weights) > 0
        detach()
        assert hooks_of(lens.weights) == 0
    lens.read(IDS, lens.hook_names[:3])
    assert hooks_of(lens.weights) == 0


@pytest.mark.parametrize("both", ["Llama"], indirect=True)
def test_reading_stops_at_the_last_hook_point_that_is_wanted(both: tuple[LensModel, Any]) -> None:
    lens, _ = both
    reached: list[str] = []
    with lens.hooked("blocks.1.hook_attn_out", lambda _: reached.append("late")):
        lens.read(IDS, ["blocks.0.hook_resid_mid", "blocks.1.hook_resid_pre"])
        assert not reached
        lens.read(IDS, ["blocks.1.hook_resid_post"])
    assert reached


@pytest.mark.parametrize("both", ["Llama"], indirect=True)
def test_a_hook_point_that_there_is_not_is_a_key_error(both: tuple[LensModel, Any]) -> None:
    lens, _ = both
    with pytest.raises(KeyError):
        lens.read(IDS, ["blocks.2.hook_resid_pre"])
    with pytest.raises(KeyError):
        lens.width("blocks.0.mlp.hook_out")


@pytest.mark.parametrize("both", ["Wide"], indirect=True)
def test_the_width_of_hook_z_is_that_of_all_heads(both: tuple[LensModel, Any]) -> None:
    lens, _ = both
    assert lens.width("blocks.0.attn.hook_z") == 80
    assert {lens.width(name) for name in lens.readable if not name.endswith("hook_z")} == {48}


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPTNeoX"])
def test_in_bfloat16_the_same_hook_points_are_offered(name: str, tmp_path: Path) -> None:
    files = write_model(name, (SEQUENTIAL | PARALLEL)[name], tmp_path, std=0.15)
    offered = [load_lens(files, device="cpu", dtype=dtype).readable for dtype in (torch.float32, torch.bfloat16)]
    assert offered[0] == offered[1]


class Block(nn.Module):
    """A block whose MLP reads the stream, or a copy of it."""

    def __init__(self, *, copies: bool) -> None:
        super().__init__()
        self.copies = copies
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor) -> Tensor:
        mid = hidden_states + 1
        added: Tensor = self.mlp(self.norm(mid.clone() if self.copies else mid))
        return mid + added


@pytest.mark.parametrize("copies", [False, True])
def test_the_stream_inside_a_block_is_offered_only_where_an_edit_reaches_the_sum(copies: bool) -> None:
    block = Block(copies=copies)
    places = {RESID_PRE: (block, True), RESID_MID: (block.norm, True), MLP_OUT: (block.mlp, False)}
    points = {
        f"blocks.0.{kind}": ModulePoint(block, module, is_input, 8, is_stream=kind == RESID_MID)
        for kind, (module, is_input) in {**places, RESID_POST: (block, False)}.items()
    }
    offered = working_points(points, lambda ids: block(torch.randn(*ids.shape, 8)))
    assert [*offered] == [name for name in points if not copies or RESID_MID not in name]


def test_a_hook_point_that_is_never_reached_is_not_offered() -> None:
    block = Block(copies=False)
    points = {"blocks.0.hook_mlp_out": ModulePoint(block, nn.Linear(8, 8), is_input=False, width=8)}
    assert working_points(points, lambda ids: block(torch.randn(*ids.shape, 8))) == {}


def test_many_hook_points_are_told_in_a_few_words() -> None:
    names = [f"blocks.{layer}.{kind}" for layer in range(30) for kind in KINDS if kind != RESID_MID]
    assert describe_hook_names(names) == (
        "hook_resid_pre, attn.hook_z, hook_attn_out, hook_mlp_out and hook_resid_post of blocks.0 to blocks.29"
    )


def test_a_norm_of_an_unknown_kind_is_not_read() -> None:
    class Scale(nn.Module):
        eps = 1e-6

    assert _norm_of(Scale()) is None
    assert _norm_of(nn.LayerNorm(8)) is not None

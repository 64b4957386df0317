"""Running from a hook point on gives the logits of a whole forward pass with that value put in its place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from steerserve.model.bridge_lens import BridgeLens
from steerserve.model.lens import LensModel, load_lens
from steerserve.model.names import MLP_OUT, RESID_POST, RESID_PRE
from tests.model.architectures import GROUPED, SERVED, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

GPT2 = {"n_positions": 128, "n_embd": 48, "n_layer": 2, "n_head": 4}
MODELS: dict[str, dict[str, Any]] = {
    **SERVED,
    "Llama": GROUPED,
    "GPT2": GPT2,
    "GPTJ": GPT2 | {"rotary_dim": 8},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mixtral": GROUPED | {"num_local_experts": 4},
    "Granite": GROUPED | {"residual_multiplier": 0.3},
}
IDS = torch.tensor([[7, 8, 9, 10, 11], [200, 3, 3, 90, 41]])


def load(name: str, folder: Path) -> BridgeLens:
    lens = load_lens(replace(write_model(name, MODELS[name], folder, std=0.15), id=name), device="cpu")
    assert isinstance(lens, BridgeLens)
    return lens


def some_value(lens: LensModel, hook_name: str) -> Tensor:
    return torch.randn(2, 5, lens.width(hook_name), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def with_value(lens: LensModel, hook_name: str, value: Tensor) -> Tensor:
    with lens.hooked(hook_name, lambda _: value.clone()):
        return lens.forward(IDS, use_cache=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_hook_point_gives_the_whole_forwards_logits(name: str, tmp_path: Path) -> None:
    lens = load(name, tmp_path)
    for hook_name in lens.hook_names:
        value = some_value(lens, hook_name)
        kept = value.clone()
        with torch.inference_mode():
            assert torch.equal(lens.run_from(hook_name, value, IDS), with_value(lens, hook_name, value))
            last = lens.run_from(hook_name, value, IDS, logits_to_keep=torch.tensor([1, 4]))
        torch.testing.assert_close(last, with_value(lens, hook_name, value)[:, [1, 4]])
        assert torch.equal(value, kept)


@pytest.mark.slow
@pytest.mark.parametrize("start", [f"blocks.0.{RESID_POST}", f"blocks.1.{RESID_PRE}"])
@pytest.mark.parametrize("name", MODELS)
def test_blocks_before_the_hook_point_are_not_computed(name: str, start: str, tmp_path: Path) -> None:
    lens = load(name, tmp_path)
    blocks = [block.original_component for block in lens.bridge.blocks]
    forwards = [block.forward for block in blocks]
    lens.run_from(start, some_value(lens, start), IDS)
    reached: list[int] = []
    with (
        lens.hooked(f"blocks.0.{MLP_OUT}", lambda _: reached.append(0)),
        lens.hooked(f"blocks.1.{MLP_OUT}", lambda _: reached.append(1)),
    ):
        lens.run_from(start, some_value(lens, start), IDS)
    assert reached == [1]
    assert [block.forward for block in blocks] == forwards


def test_a_whole_forward_runs_where_a_later_block_takes_more_than_the_stream(tmp_path: Path) -> None:
    lens = load("Llama", tmp_path)
    first, second = (block.original_component for block in lens.bridge.blocks)
    left: list[Tensor] = []
    first.mlp.register_forward_hook(lambda _, __, out: left.append(out))
    second.mlp.register_forward_hook(lambda _, __, out: out + left[-1])
    for hook_name in (f"blocks.0.{RESID_POST}", f"blocks.1.{RESID_PRE}"):
        value = some_value(lens, hook_name)
        whole = with_value(lens, hook_name, value)
        with torch.inference_mode():
            assert torch.equal(lens.run_from(hook_name, value, IDS), whole)


def test_a_hook_point_that_there_is_not_is_a_key_error(tmp_path: Path) -> None:
    lens = load("Llama", tmp_path)
    with pytest.raises(KeyError):
        lens.run_from("blocks.2.hook_resid_pre", torch.zeros(2, 5, 48), IDS)

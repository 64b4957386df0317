"""Pushes that begin at a hook point give what whole forward passes give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.dose.percentile import percentile
from steerserve.dose.prompts import calibration_ids, neutral_ids
from steerserve.dose.pushed_text import PushedText
from steerserve.engine.background import run_pieces
from tests.dose.pushing import divergences
from tests.tiny import D_MODEL, IM_START_ID

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

HOOKS = [
    ("blocks.0.hook_resid_pre",),
    ("blocks.0.hook_resid_post",),
    ("blocks.1.hook_resid_post",),
    ("blocks.1.attn.hook_z",),
    ("blocks.0.hook_mlp_out",),
    ("blocks.1.hook_resid_mid",),
    ("blocks.0.hook_attn_out", "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"),
]
MANY = 1e9


def pushes(hook_names: tuple[str, ...], count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: 0.7 * torch.randn(count, D_MODEL, generator=generator) for name in hook_names}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("hook_names", HOOKS, ids=lambda names: "+".join(name.replace("blocks.", "") for name in names))
@torch.inference_mode()
def test_divergences_are_those_of_whole_forward_passes(
    name: str, hook_names: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    medians = dict.fromkeys(hook_names, MANY)
    text = PushedText(runtime.lens, calibration_ids(runtime.tokenizer), medians, is_exact=True)
    run_pieces(text.read())
    some = pushes(hook_names, 7)
    found = run_pieces(text.divergences(some))
    for place, row in enumerate(found):
        changes = {hook: (lambda x, added=added[place]: added.expand_as(x)) for hook, added in some.items()}
        torch.testing.assert_close(row, divergences(runtime.lens, changes, medians), atol=1e-4, rtol=1e-3)


@torch.inference_mode()
def test_a_push_of_nothing_changes_nothing(llama: Runtime) -> None:
    text = PushedText(llama.lens, calibration_ids(llama.tokenizer), {"blocks.0.hook_resid_post": MANY}, is_exact=True)
    run_pieces(text.read())
    found = run_pieces(text.divergences({"blocks.0.hook_resid_post": torch.zeros(1, D_MODEL)}))
    assert float(found.max()) < 1e-5


@torch.inference_mode()
def test_special_tokens_and_sinks_are_left_alone(llama: Runtime) -> None:
    ids = torch.tensor([[IM_START_ID, *b"a~bcd"]])
    text = PushedText(llama.lens, ids, {"blocks.0.hook_resid_post": 30.0})
    run_pieces(text.read())
    assert text.edited.tolist() == [[False, True, False, True, True, True]]


def test_the_texts_are_of_one_length_and_begin_as_the_models_texts_do(llama: Runtime) -> None:
    ids = calibration_ids(llama.tokenizer)
    assert ids.shape == (14, 32)
    assert set(ids[:, 0].tolist()) == {IM_START_ID}
    assert llama.tokenizer.decode(ids[7].tolist(), skip_special_tokens=False).startswith("<|im_start|>user\nWhat is a")
    assert neutral_ids(llama.tokenizer)[0, 0] == IM_START_ID


@torch.inference_mode()
def test_rounded_factors_move_the_percentile_by_little(llama: Runtime) -> None:
    found = []
    for is_exact in (True, False):
        medians = {"blocks.0.hook_resid_post": MANY}
        text = PushedText(llama.lens, calibration_ids(llama.tokenizer), medians, is_exact=is_exact)
        run_pieces(text.read())
        found.append(percentile(run_pieces(text.divergences(pushes(tuple(medians), 7))), 0.95))
    torch.testing.assert_close(found[1], found[0], atol=0, rtol=0.05)
    if (matmul := getattr(torch.backends.mkldnn, "matmul", None)) is not None:
        assert matmul.fp32_precision != "bf16"

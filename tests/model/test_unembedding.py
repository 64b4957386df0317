"""A direction's logits are those by which it changes the model's own, whatever norm and gain stand in between."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.model.lens import load_lens
from tests.model.architectures import SERVED, write_model

if TYPE_CHECKING:
    from torch import Tensor

    from steerserve.model.lens import LensModel

LAST = "blocks.1.hook_resid_post"
STEP = 1e-2


def logits_at(lens: LensModel, resid: Tensor) -> Tensor:
    """Return the model's logits where the stream behind the last block is `resid`."""
    with torch.inference_mode(), lens.hooked(LAST, lambda _: resid[None, None].clone()):
        return lens.forward(torch.tensor([[1]]), use_cache=False)[0, 0]


@pytest.mark.parametrize("name", [*SERVED, "Llama", "GPT2"])
def test_a_direction_changes_the_logits_as_its_unembedding_says(name: str, tmp_path: Path) -> None:
    extra = {"final_logit_softcapping": None} if name.startswith("Gemma") else {}
    lens = load_lens(write_model(name, SERVED.get(name, {}) | extra, tmp_path, std=0.3), device="cpu")
    generator = torch.Generator().manual_seed(0)
    resid, direction = torch.randn(2, lens.d_model, generator=generator)
    resid -= resid.mean()
    # Along the stream itself the norm takes everything away.
    direction -= resid * (direction @ resid) / (resid @ resid)
    change = (logits_at(lens, resid + STEP * direction) - logits_at(lens, resid - STEP * direction)) / (2 * STEP)
    wanted = lens.unembed(direction[None])[0] / resid.square().mean().sqrt()
    assert torch.allclose(change, wanted, rtol=1e-2, atol=2e-2 * float(wanted.std()))

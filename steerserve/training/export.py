"""A trained dictionary as plain SAELens files whose activations count units of the residual stream."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE

if TYPE_CHECKING:
    from pathlib import Path

    from sae_lens.saes.sae import TrainingSAE

_READABLE = 0o644


def export_sae(sae: TrainingSAE[Any], scaling_factor: float, folder: Path, dtype: str) -> SAE[Any]:
    """Write `sae_weights.safetensors` and `cfg.json` to `folder`, and return what a reader of them gets, in float32.

    The scaling of activations and the norms of the decoder's rows are folded into the weights, so that an activation
    of 1 changes the residual stream by a vector of norm 1. A BatchTopK becomes the JumpReLU that it is at inference.
    Changes `sae`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".export"
    shutil.rmtree(aside, ignore_errors=True)
    sae.fold_activation_norm_scaling_factor(scaling_factor)
    sae.save_inference_model(aside)
    plain: SAE[Any] = SAE.load_from_disk(aside, device="cpu", dtype="float32")
    if not _picks_by_rank(plain):
        # A TopK is folded already where it ranks by folded activations; folding the others would change which win.
        plain.fold_W_dec_norm()
    plain.to(dtype=getattr(torch, dtype))
    plain.save_model(aside)
    for name in ("sae_weights.safetensors", "cfg.json"):
        # safetensors writes files that their owner alone can read; the server may be another user.
        (aside / name).chmod(_READABLE)
        (aside / name).replace(folder / name)
    shutil.rmtree(aside)
    return load_exported(folder)


def load_exported(folder: Path) -> SAE[Any]:
    """Load a dictionary from `folder` for use in float32, whatever its weights were saved in."""
    sae: SAE[Any] = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    return sae.eval().requires_grad_(requires_grad=False)


def _picks_by_rank(sae: SAE[Any]) -> bool:
    return str(sae.cfg.architecture()) in {"topk", "abstopk", "matching_pursuit"}

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
_RANKING = frozenset({"topk", "abstopk", "matching_pursuit"})
"""Architectures that rank activations: folding the decoder's norms would change which of them are the largest."""


def export_sae(sae: TrainingSAE[Any], scaling_factor: float, folder: Path, dtype: str) -> SAE[Any]:
    """Write `sae_weights.safetensors` and `cfg.json` to `folder`, and return the dictionary in them, in float32.

    The scaling of activations and the norms of the decoder's rows are folded into the weights, so that an activation
    of 1 changes the residual stream by a vector of norm 1. A BatchTopK is saved as a JumpReLU, which it is at
    inference. Changes `sae`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / ".export"
    shutil.rmtree(unfinished, ignore_errors=True)
    sae.fold_activation_norm_scaling_factor(scaling_factor)
    sae.save_inference_model(unfinished)
    inference_sae: SAE[Any] = SAE.load_from_disk(unfinished, device="cpu", dtype="float32")
    if str(inference_sae.cfg.architecture()) not in _RANKING:
        inference_sae.fold_W_dec_norm()
    inference_sae.to(dtype=getattr(torch, dtype))
    inference_sae.save_model(unfinished)
    for name in ("sae_weights.safetensors", "cfg.json"):
        # safetensors writes files that only their owner can read; the server may run as another user.
        (unfinished / name).chmod(_READABLE)
        (unfinished / name).replace(folder / name)
    shutil.rmtree(unfinished)
    sae_in_float32: SAE[Any] = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    return sae_in_float32.eval().requires_grad_(requires_grad=False)

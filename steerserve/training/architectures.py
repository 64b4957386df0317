"""SAELens' trainable dictionaries by name, set up for activations scaled to the norm sqrt(d_in)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from sae_lens.saes.sae import TrainingSAE

    from steerserve.training.activations import ActivationStatistics
    from steerserve.training.options import TrainOptions

_JUMPRELU: dict[str, Any] = {
    "jumprelu_sparsity_loss_mode": "tanh",
    "jumprelu_bandwidth": 2.0,
    "jumprelu_init_threshold": 0.1,
    "jumprelu_ste_to_input": True,
    "pre_act_loss_coefficient": 3e-6,
}
"""Anthropic's variant, whose loss also reaches the encoder. Source: SAELens' guide to training JumpReLU."""


def build_sae(
    options: TrainOptions, statistics: ActivationStatistics, metadata: dict[str, Any], num_steps: int, device: str
) -> TrainingSAE[Any]:
    """Return an untrained dictionary whose `b_dec` is the mean of the (scaled) activations.

    With `b_dec` at 0, SAELens' own start, features spend themselves on the mean, which is most of a residual stream's
    norm.
    """
    shared: dict[str, Any] = {
        "d_in": len(statistics.mean),
        "d_sae": options.d_sae,
        "device": device,
        "metadata": SAEMetadata(**metadata),
        # The trainer divides by the mean norm and the export folds that into the weights.
        "normalize_activations": "expected_average_only_in",
    }
    # Not the global generator: whoever else draws from it must neither change the result nor be changed by it.
    make_sae, make_config = _CLASSES[options.architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        sae = make_sae(make_config(**shared, **_settings(options, num_steps)))
    with torch.no_grad():
        sae.b_dec.copy_(statistics.mean * scaling_factor(statistics))
    return sae


def scaling_factor(statistics: ActivationStatistics) -> float:
    """Return what activations are multiplied by, so that their mean norm is sqrt(d_in) whatever the model."""
    return math.sqrt(len(statistics.mean)) / statistics.mean_norm


def _settings(options: TrainOptions, num_steps: int) -> dict[str, Any]:
    """Return what one architecture's configuration has and the others' have not."""
    warm_up = max(1, num_steps // 5)
    match options.architecture:
        case "batchtopk" | "topk":
            return {"k": options.k}
        case "standard" | "gated":
            return {"l1_coefficient": options.sparsity, "l1_warm_up_steps": warm_up}
        case "jumprelu":
            return {"l0_coefficient": options.sparsity, "l0_warm_up_steps": warm_up, **_JUMPRELU}


_CLASSES: dict[str, tuple[Callable[..., TrainingSAE[Any]], Callable[..., Any]]] = {
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "standard": (StandardTrainingSAE, StandardTrainingSAEConfig),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
}

"""SAELens' trainable dictionaries by name, set up for activations scaled to the norm sqrt(d_in)."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import (
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sae_lens.saes.sae import TrainingSAE

    from steerserve.core.literals import Architecture
    from steerserve.training.activations import ActivationStatistics
    from steerserve.training.batches import Batches
    from steerserve.training.options import DictionaryOptions

_JUMPRELU: dict[str, Any] = {
    "jumprelu_sparsity_loss_mode": "tanh",
    "jumprelu_bandwidth": 2.0,
    "jumprelu_init_threshold": 0.1,
    "jumprelu_ste_to_input": True,
    "pre_act_loss_coefficient": 3e-6,
}
"""Anthropic's variant, whose loss also reaches the encoder. Source: SAELens' documentation, "Training SAEs"."""
_NESTED = (16, 8, 4, 2, 1)
"""Divisors of the width that give the levels of a Matryoshka dictionary."""
_THRESHOLD_BATCHES = 32
_THRESHOLD_SEED = 1 << 24
"""First seed of these samples; those of resampling are steps, which are smaller."""


def build_sae(
    options: DictionaryOptions,
    statistics: ActivationStatistics,
    metadata: dict[str, Any],
    num_steps: int,
    *,
    seed: int,
    device: str,
) -> TrainingSAE[Any]:
    """Return an untrained dictionary whose `b_dec` is the mean of the scaled activations.

    SAELens begins with a `b_dec` of 0. Then features are spent on the mean, which is most of a residual stream's norm.
    """
    shared: dict[str, Any] = {
        "d_in": len(statistics.mean),
        "d_sae": options.d_sae,
        "device": device,
        "metadata": SAEMetadata(**metadata),
        # The trainer divides by the mean norm and the export folds that into the weights.
        "normalize_activations": "expected_average_only_in",
    }
    # With the global generator, other code that draws from it would change the result, and be changed by this.
    make_sae, make_config = _CLASSES[options.architecture]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="decoder_init_norm must be set to 1.0")  # SAELens then does so
        torch.manual_seed(seed)
        sae = make_sae(make_config(**shared, **_settings(options, num_steps)))
    with torch.no_grad():
        sae.b_dec.copy_(statistics.mean * scaling_factor(statistics))
    return sae


def scaling_factor(statistics: ActivationStatistics) -> float:
    """Return the factor that gives activations a mean norm of sqrt(d_in), whatever the model."""
    return math.sqrt(len(statistics.mean)) / statistics.mean_norm


@torch.no_grad()
def set_threshold(sae: TrainingSAE[Any], scaling_factor: float, hook: str, batches: Batches) -> None:
    """Set the threshold that replaces a BatchTopK's choice at inference, measured with the final weights.

    SAELens' own threshold is an average over about the last hundred steps that starts at 0. After a short run it is far
    too low, and the dictionary too dense. Does nothing for other architectures.

    Source: `update_topk_threshold` of SAELens' BatchTopKTrainingSAE, without the average over steps.
    """
    if not isinstance(sae, BatchTopKTrainingSAE):
        return
    sae.eval()
    minima = []
    for index in range(_THRESHOLD_BATCHES):
        sample = batches.sample(hook, batches.batch_size, _THRESHOLD_SEED + index).to(sae.device)
        acts = sae.encode(sample * scaling_factor)
        if bool((acts > 0).any()):
            minima.append(acts[acts > 0].min().double())
    if minima:
        sae.topk_threshold.copy_(torch.stack(minima).mean())


def _settings(options: DictionaryOptions, num_steps: int) -> dict[str, Any]:
    """Return the settings that only some architectures have."""
    warm_up = max(1, num_steps // 5)
    match options.architecture:
        case "batchtopk" | "topk" | "abstopk":
            return {"k": options.k}
        case "matryoshka_batchtopk":
            widths = sorted({max(1, options.d_sae // divisor) for divisor in _NESTED})
            return {"k": options.k, "matryoshka_widths": widths}
        case "matching_pursuit":
            return {"max_iterations": options.k}
        case "standard" | "gated":
            return {"l1_coefficient": options.sparsity, "l1_warm_up_steps": warm_up}
        case "jumprelu":
            return {"l0_coefficient": options.sparsity, "l0_warm_up_steps": warm_up, **_JUMPRELU}


_CLASSES: Mapping[Architecture, tuple[Callable[..., TrainingSAE[Any]], Callable[..., Any]]] = {
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "standard": (StandardTrainingSAE, StandardTrainingSAEConfig),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "matryoshka_batchtopk": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
    "abstopk": (AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig),
    "matching_pursuit": (MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig),
}

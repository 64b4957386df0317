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
"""Anthropic's variant, whose loss also reaches the encoder. Source: SAELens' guide to training JumpReLU."""
_NESTED = (16, 8, 4, 2, 1)
"""The levels of a Matryoshka dictionary: the whole of it over each."""
_THRESHOLD_BATCHES = 32
_THRESHOLD_SEED = 1 << 24
"""Keeps these samples apart from those of resampling, whose seeds are steps."""


def build_sae(
    options: DictionaryOptions,
    statistics: ActivationStatistics,
    metadata: dict[str, Any],
    num_steps: int,
    *,
    seed: int,
    device: str,
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
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="decoder_init_norm must be set to 1.0")  # which it then is
        torch.manual_seed(seed)
        sae = make_sae(make_config(**shared, **_settings(options, num_steps)))
    with torch.no_grad():
        sae.b_dec.copy_(statistics.mean * scaling_factor(statistics))
    return sae


def scaling_factor(statistics: ActivationStatistics) -> float:
    """Return what activations are multiplied by, so that their mean norm is sqrt(d_in) whatever the model."""
    return math.sqrt(len(statistics.mean)) / statistics.mean_norm


@torch.no_grad()
def settle_threshold(sae: TrainingSAE[Any], scale: float, hook: str, batches: Batches) -> None:
    """Set the threshold that stands for a BatchTopK's choice at inference, from the weights as they are now.

    In training it is an average over the last hundred steps or so that starts at 0, so after a short run it is far
    too low and the dictionary too dense. Does nothing for other architectures.

    Source: `update_topk_threshold` of SAELens' BatchTopKTrainingSAE, without its memory.
    """
    if not isinstance(sae, BatchTopKTrainingSAE):
        return
    sae.eval()
    least = []
    for number in range(_THRESHOLD_BATCHES):
        acts = sae.encode(batches.sample(hook, batches.batch_size, _THRESHOLD_SEED + number).to(sae.device) * scale)
        if bool((acts > 0).any()):
            least.append(acts[acts > 0].min().double())
    if least:
        sae.topk_threshold.copy_(torch.stack(least).mean())


def _settings(options: DictionaryOptions, num_steps: int) -> dict[str, Any]:
    """Return what one architecture's configuration has and the others' have not."""
    warm_up = max(1, num_steps // 5)
    match options.architecture:
        case "batchtopk" | "topk" | "abstopk":
            return {"k": options.k}
        case "matryoshka_batchtopk":
            widths = sorted({max(1, options.d_sae // part) for part in _NESTED})
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

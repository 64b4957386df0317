"""Activations in which features were planted: sparse sums of known directions around a mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from steerserve.core.literals import Architecture
from steerserve.training.activations import ActivationProfile, CachedActivations, statistics
from steerserve.training.architectures import build_sae, scaling_factor, set_threshold
from steerserve.training.batches import CachedBatches
from steerserve.training.options import DictionaryOptions, TrainOptions
from steerserve.training.trainer import train_saes
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sae_lens.saes.sae import TrainingSAE

    from steerserve.training.history import History

HOOK = "blocks.0.hook_resid_post"


def planted(
    num_rows: int, d_in: int, num_features: int, probability: float, seed: int = 0
) -> tuple[NDArray[np.float16], NDArray[np.float64]]:
    """Return rows `[num_rows, d_in]` and the unit directions `[num_features, d_in]` that they are sums of."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(num_features, d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    active = generator.random((num_rows, num_features)) < probability
    acts = active * generator.uniform(20, 60, size=active.shape)
    return np.asarray(acts @ directions + generator.normal(size=d_in) * 20, dtype=np.float16), directions


def run_options(out: Path, *dictionaries: DictionaryOptions, **more: object) -> TrainOptions:
    settings: dict[str, Any] = {"batch_size": 256, "epochs": 4, "checkpoint_every": 7, "device": "cpu", **more}
    return TrainOptions(out=out, corpus=("text",), dictionaries=dictionaries, **settings)


def dictionary(architecture: Architecture = "batchtopk", **more: object) -> DictionaryOptions:
    settings: dict[str, Any] = {"id": "t", "hook": HOOK, "d_sae": 48, "k": 4, "lr": 3e-3, **more}
    return DictionaryOptions(architecture=architecture, **settings)


def scale_of(rows: NDArray[np.float16]) -> float:
    return scaling_factor(statistics(rows))


def batches_of(rows: NDArray[np.float16], options: TrainOptions) -> CachedBatches:
    profile = ActivationProfile({HOOK: np.inf}, {HOOK: rows.shape[1]}, "float16")
    return CachedBatches(
        CachedActivations({HOOK: rows}, profile, 0), options.tokens_a_step, options.num_epochs, options.seed
    )


def trained(
    rows: NDArray[np.float16], options: TrainOptions, observer: Quiet | None = None, *, num_stillborn: int = 0
) -> tuple[dict[str, TrainingSAE[Any]], dict[str, History]]:
    """Train on `rows`, as a run does; the first `num_stillborn` features begin where nothing makes them fire."""
    batches = batches_of(rows, options)
    known = batches.statistics[HOOK]
    saes = {
        one.id: build_sae(one, known, {"model_name": "m"}, batches.num_steps, seed=options.seed, device="cpu")
        for one in options.dictionaries
    }
    for sae in saes.values():
        if num_stillborn:
            sae.b_enc.data[:num_stillborn] = -100.0
    scales = {one.id: scaling_factor(known) for one in options.dictionaries}
    histories = train_saes(saes, scales, batches, options, observer or Quiet())
    for sae in saes.values():
        set_threshold(sae, scaling_factor(known), HOOK, batches)
    return saes, histories


def share_found(sae: TrainingSAE[Any], directions: NDArray[np.float64], cosine: float = 0.95) -> float:
    """Return the share of planted directions that some decoder row points along."""
    rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1)
    best = (torch.from_numpy(directions).float() @ rows.T).max(dim=1).values
    return float((best >= cosine).float().mean())


def share_dead(sae: TrainingSAE[Any], rows: NDArray[np.float16]) -> float:
    """Return the share of features that fire on no row."""
    acts = sae.encode(torch.from_numpy(rows.astype(np.float32)) * scale_of(rows))
    return float((acts > 0).any(dim=0).logical_not().float().mean())

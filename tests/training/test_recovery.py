"""Training finds what was planted, and resampling brings dead features back to life."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from steerserve.core.literals import Architecture
from steerserve.training.resampling import resample_dead
from steerserve.training.trainer import _build_trainer
from tests.training.planted import HOOK, batches_of, dictionary, planted, run_options, share_dead, share_found, trained

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sae_lens.saes.sae import TrainingSAE

    from steerserve.training.history import History

NUM_PLANTED, D_SAE, NUM_STILLBORN = 48, 64, 32


@pytest.fixture(scope="module")
def data() -> tuple[NDArray[np.float16], NDArray[np.float64]]:
    return planted(20_000, 32, NUM_PLANTED, 0.06)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_planted_features_are_found(
    data: tuple[NDArray[np.float16], NDArray[np.float64]], tmp_path: Path, architecture: Architecture
) -> None:
    rows, directions = data
    asked = run_options(tmp_path, dictionary(architecture, d_sae=D_SAE, k=3), epochs=32, batch_size=512)
    saes, _ = trained(rows, asked)
    assert share_found(saes["t"], directions) >= 0.9


@pytest.mark.slow
def test_a_standard_dictionary_finds_them_because_dead_features_are_resampled(
    data: tuple[NDArray[np.float16], NDArray[np.float64]], tmp_path: Path
) -> None:
    """Half of the features begin dead. With resampling they find what is left; without, they stay dead."""
    rows, directions = data

    def run(name: str, resample: tuple[float, ...] | None) -> tuple[TrainingSAE[Any], History]:
        kind = dictionary("standard", d_sae=D_SAE, l1_coefficient=1.0, resample=resample)
        asked = run_options(tmp_path / name, kind, epochs=30, batch_size=512)
        saes, histories = trained(rows, asked, num_stillborn=NUM_STILLBORN)
        return saes["t"], histories["t"]

    resampled, history = run("with", None)
    without, quiet = run("without", ())

    assert share_found(resampled, directions) >= 0.9
    assert share_found(without, directions) < 0.8
    assert share_dead(resampled, rows) < 0.1
    assert share_dead(without, rows) >= NUM_STILLBORN / D_SAE
    assert history.num_resampled >= NUM_STILLBORN
    assert history.last["resampled"] == history.num_resampled
    assert quiet.num_resampled == 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu", "matching_pursuit"])
def test_resampling_touches_dead_features_alone(
    data: tuple[NDArray[np.float16], NDArray[np.float64]], tmp_path: Path, architecture: Architecture
) -> None:
    rows, _ = data
    kind = dictionary(architecture, d_sae=D_SAE)
    options = run_options(tmp_path, kind, epochs=2, batch_size=512)
    saes, _ = trained(rows, options)
    sae, batches = saes["t"], batches_of(rows, options)
    trainer = _build_trainer(sae, batches, kind)
    trainer.activation_scaler.scaling_factor = 0.05
    trainer.step(batches.batch(0)[HOOK])
    before = {name: value.clone() for name, value in sae.named_parameters()}
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[3, 50]] = True
    trainer.n_forward_passes_since_fired[:] = torch.where(dead, 1e6, 0.0)

    assert resample_dead(trainer, batches.sample(HOOK, 2000, 1), seed=5) == 2

    for name, value in sae.named_parameters():
        if name in {"b_dec", "threshold"}:
            assert torch.equal(value, before[name])
            continue
        axis = 1 if name == "W_enc" else 0
        changed = (value != before[name]).movedim(axis, 0).reshape(D_SAE, -1).any(dim=1)
        assert not changed[~dead].any(), name
        moment = trainer.optimizer.state[value]["exp_avg"].movedim(axis, 0).reshape(D_SAE, -1)
        assert not moment[dead].any(), name
    torch.testing.assert_close(sae.W_dec[dead].norm(dim=1), torch.ones(2))
    assert not trainer.dead_neurons.any()

"""Training goes on after an interrupt as if there had been none, and what is saved is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from steerserve.training.activations import statistics
from steerserve.training.architectures import build_sae, scaling_factor
from steerserve.training.batches import BatchProvider
from steerserve.training.export import export_sae
from steerserve.training.options import ARCHITECTURES, Architecture, TrainOptions
from steerserve.training.trainer import total_steps, train_sae
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sae_lens.saes.sae import TrainingSAE

D_IN, NUM_PLANTED = 24, 32


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float16]:
    """Sparse sums of planted directions around a mean far from zero, in the size of a real residual stream."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(NUM_PLANTED, D_IN))
    active = generator.random((4000, NUM_PLANTED)) < 0.1
    acts = active * generator.uniform(20, 60, size=active.shape)
    sums = acts @ directions / np.sqrt(D_IN) + generator.normal(size=D_IN) * 20
    return np.asarray(sums, dtype=np.float16)


def options(out: Path, architecture: Architecture = "batchtopk", **more: object) -> TrainOptions:
    settings: dict[str, Any] = {
        "d_sae": 48, "k": 4, "batch_size": 256, "epochs": 4, "lr": 3e-3, "checkpoint_every": 7, "device": "cpu"
    }  # fmt: skip
    return TrainOptions(id="t", out=out, corpus=(out,), architecture=architecture, **settings | more)


def trained(rows: NDArray[np.float16], asked: TrainOptions, progress: Quiet | None = None) -> TrainingSAE[Any]:
    known = statistics(rows)
    provider = BatchProvider(rows, asked.batch_size, asked.seed)
    sae = build_sae(asked, known, {"model_name": "m"}, total_steps(asked, provider), "cpu")
    return train_sae(sae, provider, asked, scaling_factor(known), progress or Quiet())


@pytest.mark.parametrize("architecture", ["batchtopk", "standard"])
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(
    rows: NDArray[np.float16], tmp_path: Path, architecture: Architecture
) -> None:
    whole = trained(rows, options(tmp_path / "one", architecture))
    with pytest.raises(KeyboardInterrupt):
        trained(rows, options(tmp_path / "two", architecture), Quiet(after=2))
    torch.rand(3)
    resumed = trained(rows, options(tmp_path / "two", architecture))

    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_that_a_kill_left_unfinished_is_not_read(rows: NDArray[np.float16], tmp_path: Path) -> None:
    asked = options(tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        trained(rows, asked, Quiet(after=2))
    half = asked.run_dir / "checkpoints" / "unfinished"
    half.mkdir()
    (half / "sae_weights.safetensors").write_bytes(b"half")
    assert trained(rows, asked).W_dec.isfinite().all()


def test_a_pickle_in_place_of_a_checkpoint_is_refused(
    rows: NDArray[np.float16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(tmp_path / "one")
    trained(rows, asked)
    [state] = asked.run_dir.glob("checkpoints/*/trainer_state.pt")
    torch.save({"optimizer": Path("anything")}, state)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(Exception, match="Weights only"):
        trained(rows, asked)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_files_load_in_plain_saelens_with_the_activations_that_were_trained(
    rows: NDArray[np.float16], tmp_path: Path, architecture: Architecture
) -> None:
    from sae_lens import SAE

    asked = options(tmp_path, architecture)
    sae = trained(rows, asked).eval()
    scale = scaling_factor(statistics(rows))
    x = torch.from_numpy(rows[:200].astype(np.float32))
    with torch.no_grad():
        norms = sae.W_dec.norm(dim=-1)
        before = _inference_acts(sae, x * scale) * (1 if "topk" in architecture else norms) / scale
        out_before = sae.decode(_inference_acts(sae, x * scale)) / scale

    export_sae(sae, scale, tmp_path, "float32")

    loaded = SAE.load_from_disk(tmp_path)
    with torch.no_grad():
        after = loaded.encode(x)
        size = before.abs().max()
        assert size > 0
        torch.testing.assert_close(after / size, before / size, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loaded.decode(after), out_before, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(loaded.W_dec.norm(dim=-1), torch.ones(48))


def test_half_precision_changes_little_and_reads_back_as_float32(rows: NDArray[np.float16], tmp_path: Path) -> None:
    asked = options(tmp_path, epochs=8)
    sae = trained(rows, asked)
    scale = scaling_factor(statistics(rows))
    x = torch.from_numpy(rows[:200].astype(np.float32))

    (tmp_path / "full").mkdir()
    from copy import deepcopy

    full = export_sae(deepcopy(sae), scale, tmp_path / "full", "float32")
    half = export_sae(sae, scale, tmp_path, "float16")

    assert half.W_dec.dtype == torch.float32
    assert (tmp_path / "sae_weights.safetensors").stat().st_size < 8000
    error = (half(x) - full(x)).norm() / full(x).norm()
    assert error < 5e-3


def test_training_finds_most_of_what_was_planted(rows: NDArray[np.float16], tmp_path: Path) -> None:
    asked = options(tmp_path, epochs=16)
    sae = export_sae(trained(rows, asked), scaling_factor(statistics(rows)), tmp_path, "float32")
    x = torch.from_numpy(rows.astype(np.float32))
    explained = 1 - (x - sae(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert explained > 0.8


def _inference_acts(sae: TrainingSAE[Any], x: torch.Tensor) -> torch.Tensor:
    """Encode as the saved form does: for a BatchTopK, by its threshold and not by the batch."""
    if sae.cfg.architecture() != "batchtopk":
        acts: torch.Tensor = sae.encode(x)
        return acts
    _, hidden_pre = sae.encode_with_hidden_pre(x)
    return torch.where(hidden_pre > sae.topk_threshold, hidden_pre.relu(), 0.0).float()

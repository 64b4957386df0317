"""Training goes on after an interrupt as if there had been none, and what is saved is what was trained."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from steerserve.core.errors import ConfigError
from steerserve.core.literals import ARCHITECTURES, Architecture
from steerserve.core.observer import StoppedError
from steerserve.training.export import export_sae
from tests.training.planted import dictionary, planted, run_options, scale_of, trained
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sae_lens.saes.sae import TrainingSAE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float16]:
    return planted(4000, 24, 32, 0.1)[0]


@pytest.mark.parametrize("architecture", ["batchtopk", "standard"])
@pytest.mark.parametrize("how", ["cut", "stopped"])
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(
    rows: NDArray[np.float16], tmp_path: Path, architecture: Architecture, how: str
) -> None:
    asked = dictionary(architecture, resample=(0.2, 0.6))
    whole, histories = trained(rows, run_options(tmp_path / "one", asked))
    first = Quiet(cut_at=3) if how == "cut" else Quiet(stop_at=3)
    with pytest.raises((KeyboardInterrupt, StoppedError)):
        trained(rows, run_options(tmp_path / "two", asked), first)
    torch.rand(3)
    resumed, again = trained(rows, run_options(tmp_path / "two", asked))

    for name, value in whole["t"].state_dict().items():
        assert torch.equal(value, resumed["t"].state_dict()[name]), name
    assert json.dumps(histories["t"].as_json()) == json.dumps(again["t"].as_json())


def test_a_stop_keeps_the_very_step(rows: NDArray[np.float16], tmp_path: Path) -> None:
    asked = run_options(tmp_path, dictionary(), checkpoint_every=1000)
    with pytest.raises(StoppedError, match="after step 30 of 60"):
        trained(rows, asked, Quiet(stop_at=3))
    assert [folder.name for folder in (asked.run_dir / "checkpoints").iterdir()] == ["00000030"]


def test_dictionaries_trained_together_are_those_trained_alone(rows: NDArray[np.float16], tmp_path: Path) -> None:
    kinds = [dictionary(id="a"), dictionary("standard", id="b", d_sae=64), dictionary("jumprelu", id="c")]
    together, _ = trained(rows, run_options(tmp_path / "all", *kinds))
    for kind in kinds:
        alone, _ = trained(rows, run_options(tmp_path / kind.id, kind))
        assert torch.equal(together[kind.id].W_dec, alone[kind.id].W_dec)


def test_a_checkpoint_that_a_kill_left_unfinished_is_not_read(rows: NDArray[np.float16], tmp_path: Path) -> None:
    asked = run_options(tmp_path, dictionary())
    with pytest.raises(KeyboardInterrupt):
        trained(rows, asked, Quiet(cut_at=2))
    half = asked.run_dir / "checkpoints" / "unfinished" / "dictionaries" / "t"
    half.mkdir(parents=True)
    (half / "sae_weights.safetensors").write_bytes(b"half")
    saes, _ = trained(rows, asked)
    assert saes["t"].W_dec.isfinite().all()


def test_a_pickle_in_place_of_a_checkpoint_is_refused(
    rows: NDArray[np.float16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run_options(tmp_path, dictionary())
    trained(rows, asked)
    [state] = asked.run_dir.glob("checkpoints/*/dictionaries/t/trainer_state.pt")
    torch.save({"optimizer": Path("anything")}, state)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(Exception, match="Weights only"):
        trained(rows, asked)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_files_load_in_plain_saelens_with_the_activations_that_were_trained(
    rows: NDArray[np.float16], tmp_path: Path, architecture: Architecture
) -> None:
    from sae_lens import SAE

    saes, _ = trained(rows, run_options(tmp_path, dictionary(architecture)))
    sae = saes["t"].eval()
    scale = scale_of(rows)
    x = torch.from_numpy(rows[:200].astype(np.float32))
    with torch.no_grad():
        before = _inference_acts(sae, x * scale)
        out_before = sae.decode(before) / scale
        # Where activations do not count units of the decoder's norm yet, the export makes them.
        before = before * (sae.W_dec.norm(dim=-1) if architecture in {"standard", "gated", "jumprelu"} else 1) / scale

    exported = export_sae(sae, scale, tmp_path / "out", "float32")

    loaded = SAE.load_from_disk(tmp_path / "out")
    with torch.no_grad():
        after = loaded.encode(x)
        size = before.abs().max()
        assert size > 0
        torch.testing.assert_close(after / size, before / size, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loaded.decode(after), out_before, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(exported.encode(x), after, atol=1e-5, rtol=0)
        if architecture != "matching_pursuit":
            torch.testing.assert_close(loaded.W_dec.norm(dim=-1), torch.ones(48))


def test_a_short_batchtopk_run_fires_as_often_as_it_was_asked_to(rows: NDArray[np.float16], tmp_path: Path) -> None:
    """The threshold that SAELens averages in training is far from settled after so few steps."""
    saes, _ = trained(rows, run_options(tmp_path, dictionary(), epochs=2))
    x = torch.from_numpy(rows.astype(np.float32))
    sae = export_sae(saes["t"], scale_of(rows), tmp_path / "out", "float32")
    assert 3 < float((sae.encode(x) > 0).float().sum(-1).mean()) < 5


def test_half_precision_changes_little_and_reads_back_as_float32(rows: NDArray[np.float16], tmp_path: Path) -> None:
    saes, _ = trained(rows, run_options(tmp_path, dictionary(), epochs=8))
    x = torch.from_numpy(rows[:200].astype(np.float32))

    full = export_sae(deepcopy(saes["t"]), scale_of(rows), tmp_path / "full", "float32")
    half = export_sae(saes["t"], scale_of(rows), tmp_path / "half", "float16")

    assert half.W_dec.dtype == torch.float32
    assert (tmp_path / "half" / "sae_weights.safetensors").stat().st_size < 8000
    error = (half(x) - full(x)).norm() / full(x).norm()
    assert error < 2e-2


def test_a_dictionary_may_have_the_name_of_a_file_of_ours(rows: NDArray[np.float16], tmp_path: Path) -> None:
    saes, _ = trained(rows, run_options(tmp_path, dictionary(id="progress.json"), dictionary(id="batches")))
    assert set(saes) == {"progress.json", "batches"}


def test_a_run_that_diverges_says_so(rows: NDArray[np.float16], tmp_path: Path) -> None:
    broken = rows.copy()
    broken[:, 0] = np.inf
    with pytest.raises(ConfigError, match="diverged"):
        trained(broken, run_options(tmp_path, dictionary("standard")))


def test_the_curves_of_a_long_run_are_some_hundred_points() -> None:
    from steerserve.training.history import History

    history = History()
    for step in range(10, 100_001, 10):
        history.add(step, {"l0": 1 / step}, 100_000)
    assert len(history.points) <= 402
    assert history.points[-1]["step"] == 100_000


def _inference_acts(sae: TrainingSAE[Any], x: torch.Tensor) -> torch.Tensor:
    """Encode as the saved form does: for a BatchTopK, by its threshold and not by the batch."""
    if not hasattr(sae, "topk_threshold"):
        acts: torch.Tensor = sae.encode(x)
        return acts
    _, hidden_pre = sae.encode_with_hidden_pre(x)
    return torch.where(hidden_pre > sae.topk_threshold, hidden_pre.relu(), 0.0).float()

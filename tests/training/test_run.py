"""A whole run on a tiny model: files, report, what is refused, and that held-out text stays unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from steerserve.core.errors import ConfigError, CorpusError
from steerserve.training.corpus import load_corpus
from steerserve.training.options import TrainOptions
from steerserve.training.run import train

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOOK = "blocks.1.hook_resid_post"


def options(model: Path, corpus: Path, out: Path, **more: object) -> TrainOptions:
    settings: dict[str, Any] = {
        "hook": HOOK, "d_sae": 96, "k": 8, "tokens": 6000, "epochs": 3, "batch_size": 256, "context_size": 32,
        "heldout_tokens": 200, "device": "cpu",
    }  # fmt: skip
    return TrainOptions(id="tiny", out=out, corpus=(corpus,), model=str(model), **settings | more)


def test_a_run_leaves_a_dictionary_a_report_and_what_a_server_reads(
    sink_model: Path, text_folder: Path, tmp_path: Path
) -> None:
    from sae_lens import SAE

    out = train(options(sink_model, text_folder, tmp_path / "out", dtype="float16"))

    assert sorted(file.name for file in out.iterdir()) == ["cfg.json", "report.json", "sae_weights.safetensors"]
    sae = SAE.load_from_disk(out)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    metadata = sae.cfg.metadata
    assert sae.cfg.architecture() == "jumprelu"
    assert metadata["hook_name"] == HOOK
    assert metadata["model_name"] == report["model"] == sink_model.name
    assert metadata["context_size"] == 32
    assert metadata["prepend_bos"] is True
    assert metadata["exclude_special_tokens"] == [256, 257, 258]
    assert metadata["steerserve"]["median_norm"] == pytest.approx(report["median_norm"], abs=1e-5)
    assert metadata["steerserve"]["mean_norm"] == pytest.approx(report["mean_norm"], abs=1e-5)
    assert report["heldout"]["ce_clean"] > 0
    assert report["training"]["tokens"] == 6000
    assert report["training"]["steps"] == 3 * (6000 // 256)
    assert report["training"]["sinks_left_out"] > 10
    assert set(report["versions"]) >= {"torch", "sae-lens"}
    assert 0 <= report["dead_fraction"] < 1

    with pytest.raises(ConfigError, match="finished dictionary"):
        train(options(sink_model, text_folder, out))


def test_a_run_that_was_cut_goes_on_and_one_with_other_options_is_refused(
    sink_model: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    asked = options(sink_model, text_folder, tmp_path / "cut", checkpoint_every=20, tokens=1500)
    with monkeypatch.context() as patched:
        patched.setattr("steerserve.training.run.export_sae", cut)
        with pytest.raises(KeyboardInterrupt):
            train(asked)
    with pytest.raises(ConfigError, match="another k;"):
        train(options(sink_model, text_folder, tmp_path / "cut", k=4, tokens=1500))

    weights = train(asked) / "sae_weights.safetensors"
    whole = train(options(sink_model, text_folder, tmp_path / "whole", tokens=1500)) / "sae_weights.safetensors"
    assert weights.read_bytes() == whole.read_bytes()


def test_held_out_documents_are_never_trained_on(
    sink_model: Path, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    """Each document is one letter, and at this hook point a row is its token's embedding, so rows can be read back."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    file = tmp_path / "letters.jsonl"
    file.write_text("".join(json.dumps({"text": letter * 30}) + "\n" for letter in letters), encoding="utf-8")
    asked = options(sink_model, file, tmp_path / "out", hook="blocks.0.hook_resid_pre", keep_run=True)

    train(asked)

    corpus = load_corpus(asked.corpus)
    rows = np.memmap(asked.run_dir / "activations" / "activations.bin", np.float16, "r", shape=(6000, 48))
    rows = rows[np.abs(rows).sum(axis=1) > 0]
    seen = {chr(int(np.abs(embeddings - row.astype(np.float32)).sum(axis=1).argmin())) for row in rows}
    held = {(document.text or "")[0] for document in corpus.heldout}
    assert held
    assert seen == set(letters) - held


def test_bad_text_and_a_bad_hook_point_are_refused(sink_model: Path, text_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="There is no"):
        train(options(sink_model, tmp_path / "nowhere", tmp_path / "a"))
    with pytest.raises(ConfigError, match=r"last is blocks\.1\.hook_resid_post"):
        train(options(sink_model, text_folder, tmp_path / "b", hook="blocks.2.hook_resid_post"))

"""A whole run on a tiny model: files, report, what is refused, and that held-out text stays unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from steerserve.core.errors import ConfigError, CorpusError
from steerserve.core.observer import StoppedError
from steerserve.text.corpus import load_corpus
from steerserve.training.options import DictionaryOptions, TrainOptions
from steerserve.training.run import train
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.slow

HOOK = "blocks.1.hook_resid_post"


def options(model: Path, corpus: Path, out: Path, *dictionaries: DictionaryOptions, **more: object) -> TrainOptions:
    settings: dict[str, Any] = {
        "tokens": 6000, "epochs": 3, "batch_size": 256, "context_size": 32, "heldout_tokens": 200, "device": "cpu"
    }  # fmt: skip
    return TrainOptions(
        out=out,
        corpus=(str(corpus),),
        dictionaries=dictionaries or (dictionary(),),
        model=str(model),
        **settings | more,
    )


def dictionary(**more: object) -> DictionaryOptions:
    settings: dict[str, Any] = {"id": "tiny", "hook": HOOK, "d_sae": 96, "k": 8}
    return DictionaryOptions(**settings | more)


def test_a_run_leaves_a_dictionary_a_report_and_what_a_server_reads(
    sink_model: Path, text_folder: Path, tmp_path: Path
) -> None:
    from sae_lens import SAE

    asked = options(sink_model, text_folder, tmp_path / "out", dictionary(dtype="float16"))
    [out] = train(asked, Quiet())

    assert sorted(file.name for file in out.iterdir()) == [
        "cfg.json", "report.html", "report.json", "sae_weights.safetensors",
    ]  # fmt: skip
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
    assert report["training"]["wall_time_s"] > 0
    assert set(report["versions"]) >= {"torch", "sae-lens"}
    assert 0 <= report["dead_fraction"] < 1
    assert sum(report["features"]["density"]["counts"]) == round(96 * (1 - report["dead_fraction"]))
    assert report["history"]["points"][-1]["step"] == report["training"]["steps"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<polyline" in page
    assert "http" not in page


def test_the_same_run_again_is_done_already_and_another_is_refused(
    sink_model: Path, text_folder: Path, tmp_path: Path
) -> None:
    asked = options(sink_model, text_folder, tmp_path / "out")
    [out] = train(asked, Quiet())
    weights = (out / "sae_weights.safetensors").read_bytes()

    again = Quiet()
    assert train(asked, again) == (out,)
    assert again.stages == []
    with pytest.raises(ConfigError, match="finished dictionary"):
        train(options(sink_model, text_folder, out, dictionary(k=4)), Quiet())
    assert (out / "sae_weights.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("storage", "stage"),
    [
        ("disk", "Reading text"),
        ("disk", "Training"),
        ("disk", "Measuring on held-out text"),
        ("buffer", "Filling the buffer"),
        ("buffer", "Training"),
        ("buffer", "Measuring on held-out text"),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_files(
    sink_model: Path, text_folder: Path, tmp_path: Path, storage: str, stage: str
) -> None:
    kind = dictionary(architecture="standard", resample=(0.4,))
    asked = options(
        sink_model, text_folder, tmp_path / "cut", kind, checkpoint_every=20, tokens=5000, epochs=2, storage=storage
    )
    with pytest.raises(StoppedError):
        train(asked, Quiet(stop_in=stage))
    with pytest.raises(ConfigError, match=r"another dictionaries\."):
        train(options(sink_model, text_folder, tmp_path / "cut", tokens=5000, epochs=2, storage=storage), Quiet())

    [resumed] = train(asked, Quiet())
    [whole] = train(
        options(sink_model, text_folder, tmp_path / "whole", kind, tokens=5000, epochs=2, storage=storage), Quiet()
    )
    for name in ("sae_weights.safetensors", "cfg.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in (resumed, whole)]
    for report in reports:
        del report["training"]["wall_time_s"]
    assert reports[0] == reports[1]


def test_one_pass_trains_dictionaries_at_several_hook_points(
    sink_model: Path, text_folder: Path, tmp_path: Path
) -> None:
    kinds = (
        dictionary(id="late"),
        dictionary(id="wide", d_sae=128, architecture="topk"),
        dictionary(id="mlp", hook="blocks.0.hook_mlp_out"),
        dictionary(id="heads", hook="blocks.1.attn.hook_z"),
    )
    observer = Quiet()
    folders = train(options(sink_model, text_folder, tmp_path / "out", *kinds), observer)

    assert [folder.name for folder in folders] == ["late", "wide", "mlp", "heads"]
    assert observer.stages == ["Reading text", "Training", "Measuring on held-out text"]
    for kind, folder in zip(kinds, folders, strict=True):
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        assert report["hook"] == kind.hook
        assert report["training"]["together_with"] == [other.id for other in kinds if other is not kind]
    alone = options(sink_model, text_folder, tmp_path / "alone", kinds[0])
    [late] = train(alone, Quiet())
    assert (late / "sae_weights.safetensors").stat().st_size == (folders[0] / "sae_weights.safetensors").stat().st_size


def test_the_model_computes_in_the_format_that_is_asked_for(
    sink_model: Path, text_folder: Path, tmp_path: Path
) -> None:
    plain, coarse = (
        options(sink_model, text_folder, tmp_path / name, model_dtype=name) for name in ("float32", "bfloat16")
    )
    losses = [
        json.loads((train(asked, Quiet())[0] / "report.json").read_text(encoding="utf-8"))["heldout"]["ce_clean"]
        for asked in (plain, coarse)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_held_out_documents_are_never_trained_on(
    sink_model: Path, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    """Each document is one letter, and at this hook point a row is its token's embedding, so rows can be read back."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    file = tmp_path / "letters.jsonl"
    file.write_text("".join(json.dumps({"text": letter * 30}) + "\n" for letter in letters), encoding="utf-8")
    asked = options(sink_model, file, tmp_path / "out", dictionary(hook="blocks.0.hook_resid_pre"), keep_run=True)

    train(asked, Quiet())

    corpus = load_corpus(asked.corpus)
    rows = np.memmap(asked.run_dir / "activations" / "blocks.0.hook_resid_pre.bin", np.float16, "r", shape=(6000, 48))
    rows = rows[np.abs(rows).sum(axis=1) > 0]
    seen = {chr(int(np.abs(embeddings - row.astype(np.float32)).sum(axis=1).argmin())) for row in rows}
    held = {(document.read().text or "")[0] for document in corpus.heldout}
    assert held
    assert seen == set(letters) - held


def test_bad_text_and_a_bad_hook_point_are_refused(sink_model: Path, text_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="There is no"):
        train(options(sink_model, tmp_path / "nowhere", tmp_path / "a"), Quiet())
    beyond = dictionary(hook="blocks.2.hook_resid_post")
    with pytest.raises(ConfigError, match=r"of blocks\.0 to blocks\.1"):
        train(options(sink_model, text_folder, tmp_path / "b", beyond), Quiet())
    with pytest.raises(ConfigError, match="reads 128 tokens at most"):
        train(options(sink_model, text_folder, tmp_path / "c", context_size=256), Quiet())


def test_text_that_was_made_for_a_run_is_kept(sink_model: Path, text_folder: Path, tmp_path: Path) -> None:
    asked = options(sink_model, text_folder, tmp_path / "out")
    made = asked.run_dir / "corpus" / "self-1.jsonl"
    made.parent.mkdir(parents=True)
    made.write_text("".join(json.dumps({"text": f"{n} and on and on"}) + "\n" for n in range(30)), encoding="utf-8")
    content = made.read_bytes()

    [out] = train(replace(asked, prepared=(str(text_folder), str(made))), Quiet())

    assert not asked.run_dir.exists()
    assert (out / "corpus" / "self-1.jsonl").read_bytes() == content
    assert len(list(text_folder.iterdir())) == 60

"""Tokens that a direction promotes, and its neighbours, against a plain computation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.core.observer import StoppedError
from steerserve.dose.direction_facts import NUM_NEIGHBOURS, NUM_PROMOTED, NUM_SUPPRESSED, direction_facts
from steerserve.model.lens import load_lens
from steerserve.model.source import fetch_model
from tests.interpret.toy import loader_of
from tests.tiny import D_MODEL, tiny_llama_folder, tiny_sae_folder
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from steerserve.model.lens import LensModel


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> LensModel:
    folder = tiny_llama_folder(tmp_path_factory.mktemp("model"))
    return load_lens(fetch_model(str(folder)), device="cpu", dtype=torch.float32)


def test_promoted_and_suppressed_tokens_and_neighbours_are_the_nearest(
    lens: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerserve.dose.direction_facts._CHUNK", 7)
    dictionary = loader_of(lens, tmp_path).load("a", f"path:{tiny_sae_folder(tmp_path / 'a', d_sae=30)}")
    found = direction_facts(lens, dictionary, Quiet())

    W_dec = dictionary.sae.W_dec.detach()
    hf_model = lens.weights
    logits = (W_dec * hf_model.get_parameter("model.norm.weight")) @ hf_model.get_submodule("lm_head").weight.T
    scores = (logits - logits.mean(dim=1, keepdim=True)) / logits.std(dim=1, keepdim=True)
    cosines = torch.nn.functional.cosine_similarity(W_dec[:, None], W_dec[None], dim=-1)
    cosines.fill_diagonal_(-1)
    assert len(found) == 30
    for feature, facts in enumerate(found):
        assert (len(facts.promoted), len(facts.suppressed)) == (NUM_PROMOTED, NUM_SUPPRESSED)
        for pairs, wanted in (
            (facts.promoted, scores[feature].sort(descending=True)),
            (facts.suppressed, scores[feature].sort()),
            (facts.neighbours, cosines[feature].sort(descending=True)),
        ):
            assert [number for number, _ in pairs] == wanted.indices[: len(pairs)].tolist()
            assert [score for _, score in pairs] == pytest.approx(wanted.values[: len(pairs)].tolist(), rel=1e-3)
        assert len(facts.neighbours) == min(NUM_NEIGHBOURS, int((cosines[feature] > 0).sum()))


def test_heads_write_no_tokens_and_have_neighbours(lens: LensModel, tmp_path: Path) -> None:
    folder = tiny_sae_folder(tmp_path / "heads", d_sae=30, hook_name="blocks.0.attn.hook_z")
    dictionary = loader_of(lens, tmp_path).load("a", f"path:{folder}")
    assert dictionary.d_in == D_MODEL
    found = direction_facts(lens, dictionary, Quiet())
    assert all(not facts.promoted and not facts.suppressed and facts.neighbours for facts in found)


def test_reading_directions_can_be_stopped(lens: LensModel, tmp_path: Path) -> None:
    dictionary = loader_of(lens, tmp_path).load("a", f"path:{tiny_sae_folder(tmp_path / 'a')}")
    with pytest.raises(StoppedError):
        direction_facts(lens, dictionary, Quiet(stop_at=1))

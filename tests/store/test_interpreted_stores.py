"""Where an interpretation writes: what lies there already is found sound, or told, before any text is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steerserve.core.errors import FeatureStoreError
from steerserve.interpret.interpret import interpret
from steerserve.interpret.options import InterpretedSource, InterpretOptions
from steerserve.store.records import Label
from steerserve.store.store import FeatureStore
from tests.tiny import tiny_llama_folder, tiny_sae_folder
from tests.training.quiet import Quiet


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def options(model: Path, tmp_path: Path) -> InterpretOptions:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"some words {number} " * 5, encoding="utf-8")
    tiny_sae_folder(tmp_path / "dict", d_sae=24)
    return InterpretOptions(
        dictionaries=(InterpretedSource("dict", f"path:{tmp_path / 'dict'}"),),
        corpus=(str(text),),
        dictionary_dirs=(tmp_path,),
        allowed_dirs=(tmp_path,),
        max_dictionary_bytes=1 << 30,
        model=str(model),
        tokens=500,
        context_size=64,
        device="cpu",
        dtype="float32",
        calibrate=False,
    )


def test_a_broken_store_is_told_before_the_text_is_read(options: InterpretOptions, tmp_path: Path) -> None:
    path = tmp_path / "dict" / "features.sqlite3"
    path.write_bytes(b"no database at all")
    # The observer would stop the run in the first stage.
    with pytest.raises(FeatureStoreError, match="not a database"):
        interpret(options, Quiet(stop_in="Reading text"))
    assert path.read_bytes() == b"no database at all"


def test_weights_that_take_anothers_place_are_interpreted_there_and_both_are_kept(
    options: InterpretOptions, tmp_path: Path
) -> None:
    [first] = interpret(options, Quiet())
    assert first.store == tmp_path / "dict" / "features.sqlite3"
    old = FeatureStore.open(first.store)
    assert (old.meta().model, old.meta().contents is None) == ("tiny", False)
    old.set_label(0, Label("mine", "person"))
    tiny_sae_folder(tmp_path / "dict", d_sae=24, seed=1)
    [second] = interpret(options, Quiet())
    assert (second.store, second.num_features) == (first.store, 24)
    assert FeatureStore.open(second.store).meta().dictionary_sha256 == second.sha256
    assert FeatureStore.open(second.store).label_history(0)[0].origin != "person"
    # The first ones come back: what made room is found, and goes on being added to.
    tiny_sae_folder(tmp_path / "dict", d_sae=24, seed=0)
    [third] = interpret(replace(options, tokens=600), Quiet())
    assert third.sha256 == first.sha256
    assert FeatureStore.open(third.store).labels([0]) == {0: "mine"}
    assert FeatureStore.open(second.store).meta().dictionary_sha256 == second.sha256

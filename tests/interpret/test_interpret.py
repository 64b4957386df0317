"""A whole interpretation: a planted feature is described as it was planted, however often the run is interrupted."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.core.errors import ConfigError, CorpusError, DictionarySourceError
from steerserve.core.observer import StoppedError
from steerserve.interpret.interpret import interpret
from steerserve.interpret.options import InterpretedSource, InterpretOptions
from steerserve.model.lens import load_lens
from steerserve.model.source import fetch_model
from steerserve.store.records import Label
from steerserve.store.store import FeatureStore
from tests.interpret.toy import READ, WRITTEN, planted_folder, sink_model_folder
from tests.tiny import tiny_sae_folder
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.store.stored import StoredFeature

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sink_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def options(model: Path, tmp_path: Path) -> InterpretOptions:
    """Ask for a planted dictionary and a random one, on text of which one word in ten has the planted letter."""
    lens = load_lens(fetch_model(str(model)), device="cpu", dtype=torch.float32)
    folder = tmp_path / "dictionaries"
    planted_folder(folder / "planted", lens)
    tiny_sae_folder(folder / "random", d_sae=40)
    source = random.Random(0)
    words = ["".join(source.choices("abcdefgh", k=4)) for _ in range(40)]
    words += [f"a{READ}b{READ}" for _ in range(4)]
    text = tmp_path / "text"
    text.mkdir()
    for number in range(80):
        (text / f"{number}.txt").write_text(" ".join(source.choices(words, k=14)), encoding="utf-8")
    return InterpretOptions(
        dictionaries=tuple(InterpretedSource(name, f"path:{folder / name}") for name in ("planted", "random")),
        corpus=(str(text),),
        dictionary_dirs=(folder,),
        allowed_dirs=(folder,),
        max_dictionary_bytes=1 << 30,
        model=str(model),
        tokens=3000,
        context_size=64,
        device="cpu",
        dtype="float32",
        calibrate=False,
    )


def stored(options: InterpretOptions, name: str) -> list[StoredFeature]:
    store = FeatureStore.open(options.dictionary_dirs[0] / name / "features.sqlite3")
    return [found for number in store.feature_numbers() if (found := store.feature(number)) is not None]


def test_a_planted_feature_is_described_as_it_was_planted(options: InterpretOptions) -> None:
    planted, other = interpret(options, Quiet())

    assert (planted.num_features, planted.num_live, planted.num_tokens) == (8, 1, 3000)
    assert (other.num_features, other.num_tokens) == (40, 3000)
    one, *dead = stored(options, "planted")
    assert one.record is not None
    activity = one.record.activity
    # The embedding of the letter is all that it reads.
    assert activity.maximum == pytest.approx(activity.mean) == pytest.approx(activity.quantiles[0], rel=1e-3)
    assert activity.histogram[-1] == activity.num_active > 100
    assert {token_id for token_id, _ in one.record.peak_tokens} == {ord(READ)}
    assert one.record.promoted[0][0] == ord(WRITTEN)
    for snippet in one.record.snippets:
        assert snippet.token_ids[snippet.peak] == ord(READ)
        assert [act > 0 for act in snippet.acts] == [token_id == ord(READ) for token_id in snippet.token_ids]
    texts = {label.origin: label.text for label in one.labels}
    assert f'"{READ}"' in texts["peak"]
    assert f'"{WRITTEN.lower()}"' in texts["promoted"].lower()
    assert one.label is not None
    assert one.label.origin == "peak"
    for feature in dead:
        assert feature.record is not None
        assert feature.record.activity.num_active == 0
        assert (feature.record.snippets, feature.label) == ((), None)


@pytest.mark.parametrize(
    "disturbance", [{"stop_in": "Reading text"}, {"stop_in": "Reading directions"}, {"cut_at": 30}]
)
def test_a_run_that_was_interrupted_ends_with_the_stores_of_an_undisturbed_one(
    options: InterpretOptions, disturbance: dict[str, int | str]
) -> None:
    interpret(options, Quiet())
    undisturbed = {name: stored(options, name) for name in ("planted", "random")}
    for name in undisturbed:
        (options.dictionary_dirs[0] / name / "features.sqlite3").unlink()
    with pytest.raises((StoppedError, KeyboardInterrupt)):
        interpret(options, Quiet(**disturbance))  # type: ignore[arg-type]
    assert options.run_dir.is_dir()
    interpret(options, Quiet())

    assert not options.run_dir.exists()
    for name, features in undisturbed.items():
        again = stored(options, name)
        assert [feature.record for feature in map(without_times, again)] == [
            feature.record for feature in map(without_times, features)
        ]


def without_times(feature: StoredFeature) -> StoredFeature:
    assert feature.record is not None
    labels = tuple(replace(label, created=0.0) for label in feature.record.labels)
    return replace(feature, record=replace(feature.record, labels=labels))


def test_labels_by_people_outlive_another_run(options: InterpretOptions) -> None:
    interpret(options, Quiet())
    path = options.dictionary_dirs[0] / "planted" / "features.sqlite3"
    FeatureStore.open(path).set_label(0, Label("the letter", "person"))
    interpret(replace(options, tokens=500), Quiet())

    store = FeatureStore.open(path)
    assert store.meta().num_tokens == 500
    assert store.labels([0]) == {0: "the letter"}


def test_what_is_left_of_a_run_with_other_options_is_dropped(options: InterpretOptions) -> None:
    with pytest.raises(StoppedError):
        interpret(options, Quiet(stop_in="Reading text"))
    planted, _ = interpret(replace(options, tokens=700), Quiet())
    assert planted.num_tokens == 700


def test_features_that_were_active_are_calibrated_once(options: InterpretOptions) -> None:
    asked = replace(options, calibrate=True)
    with pytest.raises(StoppedError):
        interpret(asked, Quiet(stop_in="Reading directions"))
    _, other = interpret(asked, Quiet())
    store = FeatureStore.open(other.store)
    calibrations = store.calibrations()
    assert 0 < other.num_calibrated == len(calibrations) <= other.num_live
    again = Quiet()
    interpret(asked, again)
    assert store.calibrations() == calibrations


def test_weights_that_have_changed_are_refused(options: InterpretOptions) -> None:
    changed = replace(options.dictionaries[0], sha256="0" * 64)
    with pytest.raises(DictionarySourceError, match="has changed"):
        interpret(replace(options, dictionaries=(changed,)), Quiet())


def test_text_that_is_not_there_is_refused_before_a_model_is_loaded(options: InterpretOptions) -> None:
    with pytest.raises(CorpusError):
        interpret(replace(options, corpus=("nowhere",), model="no-such-model"), Quiet())


def test_windows_longer_than_the_model_reads_are_refused(options: InterpretOptions) -> None:
    with pytest.raises(ConfigError, match="at most 128 tokens"):
        interpret(replace(options, context_size=129), Quiet())


def test_options_come_back_from_json_as_they_were(options: InterpretOptions) -> None:
    assert InterpretOptions.from_json(options.to_json()) == options

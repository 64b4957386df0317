"""What is known of one dictionary never gets in the way of what is known of another, wherever their files lie."""

from __future__ import annotations

import json
import sqlite3
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import FeatureStoreError
from steerserve.dictionaries.sources import BUNDLED_DIR
from steerserve.runtime import Runtime, build_runtime
from steerserve.store import schema, stores
from steerserve.store.location import StoreLocation, locate_store
from steerserve.store.records import Calibration, Label
from steerserve.store.schema import StoreUnreachableError
from steerserve.store.store import FeatureStore
from steerserve.store.stored import StoreMeta, Subject
from tests.interpret.known import byte_of, feature
from tests.store.version_1 import downgrade
from tests.tiny import tiny_sae_folder, tiny_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from steerserve.dictionaries.dictionary import Dictionary

pytestmark = pytest.mark.slow

MINE = Label("mine", "person")
FORCED = "The dictionary 'res0' was made for the model 'tiny', and this server serves 'instruct'."


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Runtime]:
    with build_runtime(tiny_settings(tmp_path, engine={"threads": 1})) as runtime:
        yield runtime


def interpret_with(runtime: Runtime, dictionary: Dictionary, label: str) -> None:
    """Write what `interpret` would have found."""
    location = runtime.stores.location(dictionary)
    meta = StoreMeta(
        dictionary.sha256, dictionary.d_sae, location.subject.model, 1000, contents=location.subject.contents
    )
    location.prepare()
    with location.replacing(meta) as fresh:
        fresh.write_features([feature(0, label=label), feature(1)], byte_of)


def label_of(runtime: Runtime, dictionary: Dictionary, number: int = 0) -> str | None:
    return runtime.stores.label(dictionary, number)


def test_a_dictionary_that_is_served_on_spares_the_store_of_what_its_folder_holds_now(
    served: Runtime, tmp_path: Path
) -> None:
    folder = tmp_path / "dictionaries" / "res0"
    old = served.dictionaries()[0]
    served.stores.for_writing(old, "tiny").set_label(5, MINE)
    tiny_sae_folder(folder, seed=1)
    new = served.dictionary_library.load("new", f"path:{folder}")
    interpret_with(served, new, "new words")
    served.stores.for_writing(new, "tiny").set_label(5, Label("of the new one", "person"))
    beside = folder / "features.sqlite3"
    assert FeatureStore.open(beside).labels([0, 5]) == {0: "new words", 5: "of the new one"}
    before = beside.read_bytes()
    # The old one, which has made room, is labelled and pushed while it is served still.
    assert label_of(served, old, 5) == "mine"
    served.stores.for_writing(old, "tiny").set_label(6, MINE)
    served.stores.for_writing(old, "tiny").write_calibrations({6: Calibration(3.0, 0.5)})
    assert beside.read_bytes() == before
    served.stores.for_writing(new, "tiny").set_label(6, Label("of the new one", "person"))
    assert [label_of(served, old, number) for number in (0, 5, 6)] == [None, "mine", "mine"]
    assert [label_of(served, new, number) for number in (0, 5, 6)] == ["new words"] + 2 * ["of the new one"]
    # And back again: nobody's labels are lost.
    tiny_sae_folder(folder, seed=0)
    interpret_with(served, old, "old words")
    assert [label_of(served, old, number) for number in (0, 5, 6)] == ["old words", "mine", "mine"]
    assert [label_of(served, new, number) for number in (0, 5, 6)] == ["new words"] + 2 * ["of the new one"]


def test_weights_that_are_gone_from_the_folder_leave_its_file_to_those_that_are_there(
    served: Runtime, tmp_path: Path
) -> None:
    folder = tmp_path / "dictionaries" / "res0"
    old = served.dictionaries()[0]
    tiny_sae_folder(folder, seed=1)
    new = served.dictionary_library.load("new", f"path:{folder}")
    interpret_with(served, new, "new words")
    interpret_with(served, old, "old words")
    assert FeatureStore.open(folder / "features.sqlite3").labels([0]) == {0: "new words"}
    assert (label_of(served, old), label_of(served, new)) == ("old words", "new words")
    assert served.stores.location(old).own.is_file()


def test_a_file_that_was_renamed_aside_is_never_overwritten(served: Runtime, tmp_path: Path) -> None:
    dictionary = served.dictionaries()[0]
    folder = tmp_path / "dictionaries" / "res0"
    for text in ("one", "two"):
        other = StoreMeta("b" * 64, 96, "tiny")
        (folder / "features.sqlite3").unlink(missing_ok=True)
        FeatureStore.create(folder / "features.sqlite3", other).set_label(0, Label(text, "person"))
        interpret_with(served, dictionary, "words")
    kept = [FeatureStore.open(folder / f"features-{'b' * 12}{ending}.sqlite3") for ending in ("", "-2")]
    assert [store.labels([0]) for store in kept] == [{0: "one"}, {0: "two"}]


def test_what_was_measured_with_another_model_holds_for_that_one_alone(served: Runtime) -> None:
    dictionary = served.dictionaries()[0]
    interpret_with(served, dictionary, "base words")
    base = served.stores.for_writing(dictionary, "tiny")
    base.write_calibrations({0: Calibration(3.0, 0.5)})
    base.set_label(1, MINE)
    served.stores.serve("instruct")
    forced = replace(dictionary, warnings=(FORCED,))
    assert served.stores.find(forced) is None
    # A store of its own, with what people said of the weights and without what the other model did.
    tuned = served.stores.for_writing(forced, "instruct")
    assert (tuned.labels([0, 1]), tuned.calibrations(), tuned.maximum(0)) == ({1: "mine"}, {}, None)
    tuned.write_calibrations({0: Calibration(7.0, 0.5)})
    interpret_with(served, forced, "instruct words")
    found = served.stores.find(forced)
    assert found is not None
    assert (found.labels([0, 1]), found.calibrations()) == (
        {0: "instruct words", 1: "mine"},
        {0: Calibration(7.0, 0.5)},
    )
    served.stores.serve("tiny")
    again = served.stores.find(dictionary)
    assert again is not None
    assert (again.labels([0, 1]), again.calibrations()) == ({0: "base words", 1: "mine"}, {0: Calibration(3.0, 0.5)})


def test_an_interpretation_with_another_model_takes_peoples_labels_and_no_doses(served: Runtime) -> None:
    dictionary = served.dictionaries()[0]
    interpret_with(served, dictionary, "base words")
    base = served.stores.for_writing(dictionary, "tiny")
    base.write_calibrations({0: Calibration(3.0, 0.5)})
    base.set_label(1, MINE)
    served.stores.serve("instruct")
    forced = replace(dictionary, warnings=(FORCED,))
    interpret_with(served, forced, "instruct words")
    tuned = served.stores.find(forced)
    assert tuned is not None
    assert (tuned.labels([0, 1]), tuned.calibrations()) == ({0: "instruct words", 1: "mine"}, {})
    served.stores.serve("tiny")
    again = served.stores.find(dictionary)
    assert again is not None
    assert again.calibrations() == {0: Calibration(3.0, 0.5)}


def test_another_configuration_of_the_same_weights_has_doses_of_its_own(served: Runtime) -> None:
    dictionary = served.dictionaries()[0]
    served.stores.for_writing(dictionary, "tiny").write_calibrations({0: Calibration(3.0, 0.5)})
    other = replace(dictionary, contents="another")
    assert served.stores.find(other) is None
    served.stores.for_writing(other, "tiny").write_calibrations({0: Calibration(7.0, 0.5)})
    for one, dose in ((dictionary, 3.0), (other, 7.0), (dictionary, 3.0)):
        store = served.stores.find(one)
        assert store is not None
        assert store.calibration(0) == Calibration(dose, 0.5)


def test_labels_alone_hold_for_the_weights_whatever_reads_with_them(served: Runtime) -> None:
    dictionary = served.dictionaries()[0]
    served.stores.for_writing(dictionary, "tiny").set_label(0, MINE)
    served.stores.serve("instruct")
    forced = replace(dictionary, warnings=(FORCED,))
    assert label_of(served, forced) == "mine"
    served.stores.for_writing(forced, "instruct").write_calibrations({0: Calibration(3.0, 0.5)})
    served.stores.serve("tiny")
    assert served.stores.find(dictionary) is None


@pytest.mark.parametrize(
    "names",
    [
        ("smollm2-135m-instruct",),
        ("HuggingFaceTB/SmolLM2-135M-Instruct",),
        ("SmolLM2-135M-Instruct.Q8_0",),
        ("some-folder", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
)
def test_the_store_that_is_bundled_is_about_the_default_model_however_it_is_named(names: tuple[str, ...]) -> None:
    store = FeatureStore(BUNDLED_DIR / "smollm2-135m-instruct" / "res17" / "features.sqlite3")
    sha256 = store.meta().dictionary_sha256
    assert store.describes(Subject(sha256, names[0], names[1:], "any contents"))
    assert not store.describes(Subject(sha256, "HuggingFaceTB/SmolLM2-135M"))
    assert store.describes(Subject(sha256))


def test_a_dictionary_that_was_not_forced_says_what_the_model_is_called_wherever_that_lies(
    served: Runtime, tmp_path: Path
) -> None:
    folder = tiny_sae_folder(tmp_path / "dictionaries" / "other")
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    config["metadata"]["model_name"] = "elsewhere/Another-Model"
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    forced = served.dictionary_library.load("forced", f"path:{folder}", force=True)
    assert stores.subject_of(forced, "tiny").model == "tiny"
    assert not stores.subject_of(forced, "tiny").matches(StoreMeta(forced.sha256, 96, "Another-Model"))
    config["metadata"]["model_name"] = "elsewhere/Tiny"
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    fitting = served.dictionary_library.load("fitting", f"path:{folder}")
    assert stores.subject_of(fitting, "tiny").matches(StoreMeta(fitting.sha256, 96, "tiny"))
    assert stores.subject_of(fitting, "renamed-folder").matches(StoreMeta(fitting.sha256, 96, "tiny"))


def test_a_store_among_our_own_files_is_used_on_when_the_folder_can_be_written_again(tmp_path: Path) -> None:
    folder = tiny_sae_folder(tmp_path / "dict")
    subject = Subject("a" * 64, "tiny", contents="c")
    meta = StoreMeta("a" * 64, 96, "tiny", contents="c")
    location = locate_store(f"path:{folder}", subject, [tmp_path / "own"], [tmp_path])
    locked = StoreLocation(subject, location.own, shipped=location.beside)
    locked.store(meta).set_label(0, MINE)
    location.store(meta).set_label(1, MINE)
    assert location.beside is not None
    assert not location.beside.exists()
    found = location.find()
    assert found is not None
    assert found.labels([0, 1]) == {0: "mine", 1: "mine"}


def test_a_shipped_store_of_an_older_version_is_copied_and_not_written(tmp_path: Path) -> None:
    subject = Subject("a" * 64, "tiny", contents="c")
    location = StoreLocation(subject, tmp_path / "own" / "x.sqlite3", shipped=tmp_path / "shipped" / "features.sqlite3")
    assert location.shipped is not None
    location.shipped.parent.mkdir()
    shipped = FeatureStore.create(location.shipped, StoreMeta("a" * 64, 16, "tiny", contents="c"))
    shipped.write_features([feature(3, label="words")], byte_of)
    downgrade(shipped.path)
    before = shipped.path.read_bytes()
    with pytest.raises(StoreUnreachableError):
        location.find(timeout_s=0.05)
    store = location.find()
    assert store is not None
    assert (store.path, store.labels([3])) == (location.own, {3: "words"})
    assert store.feature(3) is not None
    assert shipped.path.read_bytes() == before


def test_what_is_broken_is_an_error_before_an_interpretation_begins(served: Runtime) -> None:
    location = served.stores.location(served.dictionaries()[0])
    assert location.beside is not None
    location.beside.write_bytes(b"no database at all")
    with pytest.raises(FeatureStoreError, match="not a database"):
        location.prepare()


def test_an_error_that_passes_is_not_remembered(served: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = served.dictionaries()[0]
    served.stores.for_writing(dictionary, "tiny").set_label(0, MINE)
    other_stores = stores.FeatureStores(served.settings.dictionary_dirs, served.settings.allowed_dictionary_dirs)

    def too_many(*_: object, **__: object) -> sqlite3.Connection:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(schema, "connect", too_many)
        assert other_stores.find(dictionary) is None
    assert other_stores.label(dictionary, 0) == "mine"


def test_a_store_that_is_locked_is_found_once_it_is_not(served: Runtime) -> None:
    dictionary = served.dictionaries()[0]
    store = served.stores.for_writing(dictionary, "tiny")
    store.set_label(0, MINE)
    other_stores = stores.FeatureStores(served.settings.dictionary_dirs, served.settings.allowed_dictionary_dirs)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert other_stores._find(dictionary, 0.01) is None
    other.execute("COMMIT")
    other.close()
    for thread in threading.enumerate():
        if thread.name == "feature-store":
            thread.join()
    assert other_stores.label(dictionary, 0) == "mine"


def test_the_same_weights_in_two_folders_are_opened_once_each(
    served: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = served.dictionaries()[0]
    two = served.dictionary_library.load("two", f"path:{tiny_sae_folder(tmp_path / 'dictionaries' / 'two')}")
    assert one.sha256 == two.sha256
    served.stores.for_writing(one, "tiny").set_label(0, MINE)
    served.stores.for_writing(two, "tiny").set_label(0, Label("yours", "person"))
    assert (label_of(served, one), label_of(served, two)) == ("mine", "yours")
    monkeypatch.setattr(FeatureStore, "open", None)
    for _ in range(3):
        assert (label_of(served, one), label_of(served, two)) == ("mine", "yours")


async def test_an_event_loop_waits_for_no_migration_and_has_it_done_beside(
    served: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary = served.dictionaries()[0]
    store = served.stores.for_writing(dictionary, "tiny")
    store.set_label(0, MINE)
    other_stores = stores.FeatureStores(served.settings.dictionary_dirs, served.settings.allowed_dictionary_dirs)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("ALTER TABLE features ADD COLUMN mood TEXT",)))
    with schema.write_lock(store.path):
        assert other_stores.label(dictionary, 0) is None
    for thread in threading.enumerate():
        if thread.name == "feature-store":
            thread.join()
    assert other_stores.label(dictionary, 0) == "mine"

"""What is written is there as it was, whoever reads or writes meanwhile, and whoever dies while writing."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from steerserve.core.errors import FeatureStoreError
from steerserve.store import schema
from steerserve.store.placement import copy_store, install_copy, replacing
from steerserve.store.records import Calibration, Label
from steerserve.store.store import FeatureStore
from tests.interpret.known import META, SHA, byte_of, feature
from tests.store.version_1 import downgrade

PERSON = Label("bridges", "person", created=5.0)
LLM = Label("things that cross water", "llm", 0.9, 4.0, "some-model")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = FeatureStore.create(tmp_path / "features.sqlite3", META)
    made.write_features([feature(0, label="old words"), feature(3, ["x", "y"], promoted="pq", active=0)], byte_of)
    return made


def test_a_feature_comes_back_as_it_was_written(store: FeatureStore) -> None:
    store.write_calibrations({3: Calibration(40.0, 0.02)})
    again = FeatureStore.open(store.path)
    found, labelled = again.feature(3), again.feature(0)
    assert found is not None
    assert labelled is not None
    assert found.record == feature(3, ["x", "y"], promoted="pq", active=0)
    assert found.calibration == Calibration(40.0, 0.02)
    assert (found.label, found.labels) == (None, ())
    assert found.token_bytes == {token: bytes([token]) for token in b"xype qz"}
    assert labelled.record == feature(0, label="old words")
    assert labelled.label == Label("old words", "words", 0.75, 3.0)
    assert again.meta() == META


def test_nothing_is_known_of_other_features(store: FeatureStore) -> None:
    assert (store.feature(1), store.maximum(1), store.calibration(1), store.labels([1])) == (None, None, None, {})


def test_counts_tell_live_features_labels_and_calibrations(store: FeatureStore) -> None:
    store.set_labels({7: PERSON, 8: LLM})
    store.write_calibrations({0: Calibration(1.0, 0.5)})
    counts = store.counts()
    assert (counts.num_features, counts.num_live, counts.num_labelled, counts.num_calibrated) == (2, 1, 3, 1)
    assert store.feature_numbers() == [0, 3, 7, 8]


def test_the_maximum_of_a_dead_feature_is_what_was_written(store: FeatureStore) -> None:
    store.write_features([feature(5, (), active=0, maximum=0.0)], byte_of)
    assert (store.maximum(0), store.maximum(5)) == (2.0, 0.0)


def test_features_are_written_all_or_none(store: FeatureStore) -> None:
    def broken() -> object:
        yield feature(8)
        raise KeyError

    with pytest.raises(KeyError):
        store.write_features(broken(), byte_of)  # type: ignore[arg-type]
    with pytest.raises(FeatureStoreError, match="UNIQUE"):
        store.write_features([feature(9), feature(3)], byte_of)
    assert store.feature_numbers() == [0, 3]


def test_calibrations_can_be_made_anew(store: FeatureStore) -> None:
    store.write_calibrations({0: Calibration(1.0, 0.5)})
    store.write_calibrations({0: Calibration(2.0, 0.25)})
    assert store.calibrations() == {0: Calibration(2.0, 0.25)}


def test_a_persons_label_wins_and_can_be_taken_away(store: FeatureStore) -> None:
    store.set_label(0, PERSON)
    store.set_label(0, LLM)
    store.set_label(0, replace(LLM, text="spans"))
    assert store.labels([0, 1]) == {0: "bridges"}
    found = store.feature(0)
    assert found is not None
    assert [label.text for label in found.labels] == ["bridges", "spans", "old words"]
    store.set_label(0, None)
    store.set_label(0, None)
    assert store.labels([0]) == {0: "spans"}
    texts = [label.text for label in store.label_history(0)]
    assert texts == ["bridges", "spans", "things that cross water", "old words"]  # as they were made


def test_labels_are_seen_at_once_however_they_were_written(store: FeatureStore) -> None:
    reader = FeatureStore.open(store.path)
    for text in ("one", "two", "three"):
        store.set_label(3, replace(PERSON, text=text))
        assert reader.labels([3]) == {3: text}
    with replacing(store.path, META) as fresh:
        fresh.write_features([feature(0, label="new words")], byte_of)
    assert reader.labels([0, 3]) == {0: "new words", 3: "three"}


def test_labels_do_not_wait_for_a_writer(store: FeatureStore) -> None:
    assert store.labels([0]) == {0: "old words"}
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    other.execute("UPDATE labels SET text = 'newer words' WHERE feature = 0")
    assert store.labels([0]) == {0: "old words"}
    other.execute("COMMIT")
    other.close()
    assert store.labels([0]) == {0: "newer words"}


def test_the_history_is_in_the_order_in_which_labels_were_made_after_an_interpretation_too(
    store: FeatureStore,
) -> None:
    store.set_label(3, replace(PERSON, text="first", created=1.0))
    store.set_label(3, replace(PERSON, text="second", created=9.0))
    with replacing(store.path, META) as fresh:
        fresh.write_features([feature(3, label="new words")], byte_of)  # at 3.0
    assert [label.text for label in store.label_history(3)] == ["second", "new words", "first"]
    assert store.label_histories()[3] == store.label_history(3)


def test_only_newer_labels_are_taken_and_all_or_none(store: FeatureStore) -> None:
    store.set_labels({0: replace(PERSON, created=5.0), 3: replace(PERSON, created=5.0)})
    store.set_label(3, None)
    older, newer = replace(PERSON, text="older", created=4.0), replace(PERSON, text="newer", created=6.0)
    words = Label("stale words", "words", 0.5, 2.0)
    assert store.take_newer_labels({0: [older, words], 3: [older], 7: [older, newer]}) == 1
    # Neither a person's label of later, nor one that was taken away, nor fresher words.
    assert store.labels([0, 3, 7]) == {0: "bridges", 7: "newer"}
    assert store.take_newer_labels({0: [newer, replace(words, created=4.0)], 3: [replace(newer, created=0.0)]}) == 2
    found = store.feature(0)
    assert found is not None
    assert [label.text for label in found.labels] == ["newer", "stale words"]
    assert store.labels([3]) == {3: "newer"}
    broken = Label("x", "person", created=10.0, author=object())  # type: ignore[arg-type]
    with pytest.raises(FeatureStoreError):
        store.take_newer_labels({1: [replace(PERSON, created=9.0)], 2: [broken]})
    assert store.labels([1, 2]) == {}


def test_a_whole_store_takes_the_place_of_another_and_keeps_what_people_said_here(
    store: FeatureStore, tmp_path: Path
) -> None:
    store.set_labels(dict.fromkeys((0, 1, 2), PERSON))
    store.write_calibrations({0: Calibration(1.0, 0.5)})
    copy_store(store.path, tmp_path / "copy.sqlite3")
    copy = FeatureStore.open(tmp_path / "copy.sqlite3")
    store.set_label(1, None)
    store.set_labels({2: replace(PERSON, text="later here", created=9.0), 5: PERSON})
    copy.set_labels({0: replace(PERSON, text="later there", created=9.0), 6: PERSON})
    copy.write_calibrations({0: Calibration(2.0, 0.5)})
    install_copy(copy.path, store.path, META.subject)
    assert store.labels(range(16)) == {0: "later there", 2: "later here", 5: "bridges", 6: "bridges"}
    assert store.calibrations() == {0: Calibration(2.0, 0.5)}
    assert [label.text for label in store.label_history(2)] == ["later here", "bridges"]
    before = store.label_histories()
    install_copy(copy.path, store.path, META.subject)
    assert store.label_histories() == before
    with pytest.raises(FileExistsError):
        copy_store(store.path, copy.path)


def test_labels_are_looked_up_one_by_one_and_once(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set_labels(dict.fromkeys(range(16), PERSON))
    assert store.labels([1, 2]) == {1: "bridges", 2: "bridges"}
    assert store._labels._labels.keys() == {1, 2}
    monkeypatch.setattr(store._labels, "_read", None)
    assert store.labels([2, 1]) == {1: "bridges", 2: "bridges"}


def test_a_journal_of_a_file_that_was_moved_away_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    path = tmp_path / "features.sqlite3"
    path.with_name(f"{path.name}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\x01" * 4096)
    with replacing(path, META) as fresh:
        fresh.write_features([feature(0, label="words")], byte_of)
    assert FeatureStore.open(path).labels([0]) == {0: "words"}


def test_a_label_without_a_time_gets_the_present_one(store: FeatureStore) -> None:
    store.set_label(3, Label("x", "person"))
    assert store.label_history(3)[0].created > 1e9


def test_a_new_interpretation_keeps_what_people_and_models_said_and_the_calibrations(store: FeatureStore) -> None:
    store.set_labels({0: LLM, 3: PERSON, 9: PERSON})
    store.write_calibrations({0: Calibration(1.0, 0.5), 3: Calibration(2.0, 0.5)})
    with replacing(store.path, replace(META, num_tokens=2000)) as fresh:
        fresh.write_features([feature(0, label="new words"), feature(3, label="newer words")], byte_of)
        fresh.write_calibrations({0: Calibration(3.0, 0.5)})
    assert store.meta().num_tokens == 2000
    assert store.labels([0, 3, 9]) == {0: LLM.text, 3: "bridges", 9: "bridges"}
    assert store.calibrations() == {0: Calibration(3.0, 0.5), 3: Calibration(2.0, 0.5)}
    found = store.feature(0)
    assert found is not None
    assert [label.text for label in found.labels] == [LLM.text, "new words"]
    assert [label.text for label in store.label_history(0)] == [LLM.text, "old words", "new words"]


def test_an_interpretation_that_fails_leaves_everything_as_it_was(store: FeatureStore) -> None:
    before = store.path.read_bytes()
    with contextlib.suppress(KeyError), replacing(store.path, META) as fresh:
        fresh.write_features([feature(0)], byte_of)
        raise KeyError
    assert store.path.read_bytes() == before
    assert set(store.path.parent.iterdir()) == {store.path, schema.lock_file(store.path)}


def test_a_label_set_while_an_interpretation_replaces_the_file_is_kept(store: FeatureStore) -> None:
    with replacing(store.path, META) as fresh:
        fresh.write_features([feature(number) for number in range(16)], byte_of)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(store.set_label, 3, PERSON).result()
    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(store.set_label, number, PERSON) for number in range(16)]
        with replacing(store.path, META) as fresh:
            fresh.write_features([feature(number) for number in range(16)], byte_of)
        for one in writers:
            one.result()
    assert store.labels(range(16)) == dict.fromkeys(range(16), "bridges")


def test_a_store_of_other_weights_gets_out_of_the_way(store: FeatureStore) -> None:
    store.set_label(3, PERSON)
    with replacing(store.path, replace(META, dictionary_sha256="b" * 64)):
        pass
    assert store.labels([3]) == {}
    aside = FeatureStore.open(store.path.with_name(f"features-{SHA[:12]}.sqlite3"))
    assert aside.labels([3]) == {3: "bridges"}


WRITE = """
import sys
from pathlib import Path
from steerserve.store.placement import replacing
from steerserve.store.store import FeatureStore
from steerserve.store.records import Label
from tests.interpret.known import META, byte_of, feature
path = Path(sys.argv[2])
print("ready", flush=True)
if sys.argv[1] == "labels":
    for number in range(10**9):
        text = f"label {number}"
        FeatureStore(path).set_labels({one: Label(text, "person") for one in range(16)})
else:
    with replacing(path, META) as fresh:
        fresh.write_features((feature(number) for number in range(10**9)), byte_of)
"""


def killed_writer(kind: str, path: Path, seen: object) -> None:
    """Start a writer, wait until it writes, and kill it."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITE, kind, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while not seen():  # type: ignore[operator]
            assert process.poll() is None
        process.kill()
        assert process.wait() == -signal.SIGKILL


def test_a_killed_writer_of_labels_leaves_all_of_its_last_or_all_of_its_next(store: FeatureStore) -> None:
    for _ in range(3):
        known = store.labels(range(16))
        killed_writer("labels", store.path, lambda known=known: store.labels([5]).get(5) not in {None, known.get(5)})
        store.set_label(15, store.label_history(15)[0])
        assert len(set(store.labels(range(16)).values())) == 1
        with sqlite3.connect(store.path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


def test_a_killed_interpretation_leaves_the_old_store_and_the_next_one_cleans_up(store: FeatureStore) -> None:
    folder, before = store.path.parent, store.path.read_bytes()
    killed_writer("records", store.path, lambda: any(folder.glob(f".{store.path.name}.*-*")))
    assert store.path.read_bytes() == before
    assert any(folder.glob(f".{store.path.name}.*-*"))
    with replacing(store.path, META):
        pass
    assert set(folder.iterdir()) == {store.path, schema.lock_file(store.path)}


def test_readers_see_whole_transactions_while_a_writer_writes(store: FeatureStore) -> None:
    store.set_labels({number: replace(PERSON, text="label") for number in range(16)})

    def read(_: int) -> set[str]:
        reader = FeatureStore.open(store.path)
        found, _ = reader.search("label", "feature", 16)
        return {row.label.text for row in found if row.label is not None}

    def write(number: int) -> None:
        store.set_labels({one: replace(PERSON, text=f"label {number}") for one in range(16)})

    with ThreadPoolExecutor(6) as pool:
        seen = pool.map(read, range(100))
        for number in range(20):
            pool.submit(write, number)
        for texts in seen:
            assert len(texts) == 1


def test_a_store_is_read_in_a_folder_that_nobody_may_write(store: FeatureStore) -> None:
    folder = store.path.parent
    store.path.chmod(0o444)
    folder.chmod(0o555)
    before = folder.stat().st_mtime_ns
    try:
        reader = FeatureStore.open(store.path)
        assert reader.feature(0) is not None
        assert reader.search("bridge")[0]
        assert reader.labels([0]) == {0: "old words"}
        # Whoever runs the tests as root could have written: nothing was.
        assert folder.stat().st_mtime_ns == before
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a feature store"),
        (b"hello" * 1000, "not a database"),
        (b"SQLite format 3\x00" + b"\xff" * 5000, "not a database|malformed"),
    ],
    ids=["empty", "text", "garbage"],
)
def test_what_is_no_store_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "features.sqlite3"
    path.write_bytes(content)
    with pytest.raises(FeatureStoreError, match=reason):
        FeatureStore.open(path)
    with pytest.raises(FeatureStoreError, match=reason), replacing(path, META):
        pass
    with pytest.raises(FeatureStoreError, match="there is a file already"):
        FeatureStore.create(path, META)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE features (feature INTEGER PRIMARY KEY)")
    connection.close()
    with pytest.raises(FeatureStoreError, match="not a feature store"):
        FeatureStore.open(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match="unable to open"):
        FeatureStore.open(tmp_path / "features.sqlite3")


def test_a_damaged_store_is_an_error_and_no_wrong_answer(store: FeatureStore) -> None:
    whole = store.path.read_bytes()
    for start in range(16384, len(whole), 16384):
        store.path.write_bytes(whole[:start] + b"\xff" * 16384 + whole[start + 16384 :])
        for call in (lambda: store.feature(3), lambda: store.search("bridge"), store.meta, store.counts):
            try:
                call()
            except FeatureStoreError:
                continue
    store.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FeatureStoreError, match="cannot be used"):
        store.feature_numbers(), store.feature(3), store.search("bridge")


def test_a_blob_that_cannot_be_read_is_told_with_the_file(store: FeatureStore) -> None:
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE details SET content = x'00'")
    connection.close()
    with pytest.raises(FeatureStoreError, match="a feature in it cannot be read"):
        store.feature(3)
    with sqlite3.connect(store.path) as connection:
        connection.execute("DELETE FROM tokens")
    connection.close()
    with pytest.raises(FeatureStoreError, match="token"):
        store.search("bridge")


@pytest.mark.parametrize(
    "change", ["DELETE FROM meta", "UPDATE meta SET value = 'x'", "INSERT INTO meta VALUES ('y', 1)"]
)
def test_a_store_that_does_not_say_what_it_is_about_is_refused(store: FeatureStore, change: str) -> None:
    with sqlite3.connect(store.path) as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(FeatureStoreError, match="does not say which dictionary it is about"):
        FeatureStore.open(store.path)


def test_an_older_version_is_brought_up_to_date(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("ALTER TABLE features ADD COLUMN mood TEXT",)))
    again = FeatureStore.open(store.path)
    assert again.feature(3) is not None
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
        assert connection.execute("SELECT mood FROM features").fetchall() == [(None,), (None,)]
    connection.close()


def test_a_store_of_version_1_is_read_as_it_was_written(store: FeatureStore) -> None:
    store.set_label(3, PERSON)
    before = [store.feature(number) for number in (0, 3)]
    rows = store.search("bridge")
    downgrade(store.path)
    with pytest.raises(FeatureStoreError, match="a feature in it cannot be read"):
        store.feature(3)
    again = FeatureStore.open(store.path)
    assert [again.feature(number) for number in (0, 3)] == before
    assert again.search("bridge") == rows
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


def test_a_migration_that_fails_changes_nothing(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.path.read_bytes()
    broken = ("ALTER TABLE features ADD COLUMN mood TEXT", "ALTER TABLE elsewhere ADD COLUMN x")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
    with pytest.raises(FeatureStoreError, match="no such table"):
        FeatureStore.open(store.path)
    assert store.path.read_bytes() == before


def test_a_newer_version_is_refused(store: FeatureStore) -> None:
    with sqlite3.connect(store.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FeatureStoreError, match="a newer steerserve wrote it"):
        FeatureStore.open(store.path)

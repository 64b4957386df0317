"""A store whose writer was killed is read and written on, at once and by whoever comes next."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from steerserve.core.errors import FeatureStoreError
from steerserve.store import schema
from steerserve.store.placement import replacing
from steerserve.store.records import Calibration, Label
from steerserve.store.store import FeatureStore
from tests.interpret.known import META, byte_of, feature

ROOT = Path(__file__).parents[2]
AT_ONCE_S = 10.0
NUM_KILLS = 24
WRITE = """
import itertools, sys
from pathlib import Path
from steerserve.store.records import Calibration, Label
from steerserve.store.store import FeatureStore
kind, store = sys.argv[1], FeatureStore(Path(sys.argv[2]))
print("ready", flush=True)
for number in itertools.count():
    if kind == "labels":
        store.set_label(number % 16, Label(f"label {number}", "person"))
    else:
        store.write_calibrations({one: Calibration(float(number), 0.5) for one in range(16)})
"""
READ = """
import sys
from pathlib import Path
from steerserve.store.store import FeatureStore
store = FeatureStore.open(Path(sys.argv[1]))
print(len(store.feature_numbers()), len(set(store.calibrations().values())) <= 1)
"""


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = FeatureStore.create(tmp_path / "features.sqlite3", META)
    made.write_features([feature(number, label="old words") for number in range(16)], byte_of)
    return made


def kill_a_writer(kind: str, path: Path, after_s: float) -> None:
    command = [sys.executable, "-c", WRITE, kind, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after_s)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def is_hot(path: Path) -> bool:
    """Tell whether a connection that may not write is refused because of what a killed one left."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        connection.execute("SELECT count(*) FROM meta")
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK
    finally:
        connection.close()
    return False


def left_hot(store: FeatureStore, tmp_path: Path) -> Path:
    """Put a store and the journal of a transaction that was never ended into a folder, as a kill leaves them."""
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("PRAGMA cache_spill = 1")
    other.execute("PRAGMA cache_size = 1")
    other.execute("BEGIN")
    other.execute("UPDATE labels SET text = 'half done'")
    for number in range(200):
        other.execute("INSERT INTO meta VALUES (?, ?)", (f"half {number}", "x" * 2000))
    folder = tmp_path / "hot"
    folder.mkdir()
    for file in (store.path, store.path.with_name(f"{store.path.name}-journal")):
        (folder / file.name).write_bytes(file.read_bytes())
    other.execute("ROLLBACK")
    other.close()
    assert is_hot(folder / store.path.name)
    return folder / store.path.name


@pytest.mark.slow
def test_whenever_a_writer_is_killed_the_next_one_to_open_reads_whole_transactions(store: FeatureStore) -> None:
    moments = random.Random(0)
    for number in range(NUM_KILLS):
        kill_a_writer(("labels", "calibrations")[number % 2], store.path, moments.uniform(0.0, 0.05))
        start = time.monotonic()
        opened = FeatureStore.open(store.path)
        assert opened.labels(range(16)).keys() == set(range(16))
        assert len(set(opened.calibrations().values())) <= 1
        assert time.monotonic() - start < AT_ONCE_S
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_fresh_process_reads_what_a_killed_one_left(store: FeatureStore, tmp_path: Path) -> None:
    path = left_hot(store, tmp_path)
    command = [sys.executable, "-c", READ, str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60).stdout
    assert shown == "16 True\n"
    assert not is_hot(path)


def test_what_was_half_done_is_undone_and_everything_works_on(store: FeatureStore, tmp_path: Path) -> None:
    hot = FeatureStore(left_hot(store, tmp_path))
    assert hot.labels([3]) == {3: "old words"}
    hot.set_label(3, Label("mine", "person"))
    hot.write_calibrations({3: Calibration(1.0, 0.5)})
    with replacing(hot.path, META) as fresh:
        fresh.write_features([feature(3)], byte_of)
    assert (hot.labels([3]), hot.calibration(3)) == ({3: "mine"}, Calibration(1.0, 0.5))


def test_many_that_come_at_once_undo_it_once(store: FeatureStore, tmp_path: Path) -> None:
    path, found = left_hot(store, tmp_path), []
    threads = [threading.Thread(target=lambda: found.append(FeatureStore.open(path).labels([0]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(AT_ONCE_S)
    assert found == [{0: "old words"}] * 8


def test_where_it_cannot_be_undone_the_error_says_why(store: FeatureStore, tmp_path: Path) -> None:
    path = left_hot(store, tmp_path)
    schema.lock_file(path).mkdir()  # as in a folder that may not be written, also for whoever runs this as root
    with pytest.raises(FeatureStoreError, match="Rolling the unfinished write back needs write permission"):
        FeatureStore.open(path)
    schema.lock_file(path).rmdir()
    assert FeatureStore.open(path).labels([0]) == {0: "old words"}

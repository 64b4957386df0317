"""What is written is there, whoever else writes, and whoever dies while writing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import ConfigError, UnavailableError
from steerserve.jobs import rows
from steerserve.jobs.job import Job, JobSpec, Outcome
from steerserve.jobs.store import JobStore

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = JobSpec(claims=("a",), options={"steps": 3}, cache_dir=Path("cache"), threads=1, load=True, disk_bytes=5)
WRITE = """
import sys
from pathlib import Path
from steerserve.jobs.store import JobStore
store = JobStore(Path(sys.argv[1]))
print("open", flush=True)
for step in range(int(sys.argv[2])):
    store.record_progress("a", {"step": step}, {"Counting": step})
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with JobStore(tmp_path / "jobs.sqlite3") as opened:
        opened.add(Job("a", "train", SPEC))
        yield opened


def writer(store: JobStore, num_writes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITE, str(store.path), str(num_writes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def close(process: subprocess.Popen[str]) -> int:
    status = process.wait()
    assert process.stdout is not None
    process.stdout.close()
    return status


def test_a_job_comes_back_as_it_was_written_also_after_the_file_was_closed(store: JobStore) -> None:
    store.move("a", "running")
    store.move("a", "done", result={"x": [1.5, "y"]})
    store.close()
    with JobStore(store.path) as again:
        job = again.find("a")
    assert job is not None
    assert (job.spec, job.state, job.result) == (SPEC, "done", {"x": [1.5, "y"]})
    assert job.started is not None
    assert job.ended is not None
    assert job.created <= job.started <= job.ended


def test_a_job_that_has_ended_changes_no_more(store: JobStore) -> None:
    store.move("a", "cancelled")
    before = (store.find("a"), store.events("a"))
    store.move("a", "running")
    assert (store.find("a"), store.events("a")) == before


def test_jobs_are_listed_newest_first_and_taken_oldest_first(store: JobStore) -> None:
    for name in "bcd":
        store.add(Job(name, "train", SPEC))
    store.move("b", "running")
    assert [job.id for job in store.newest(10)] == ["d", "c", "b", "a"]
    assert [job.id for job in store.newest(2)] == ["d", "c"]
    assert [job.id for job in store.newest(10, "running")] == ["b"]
    assert [job.id for job in store.in_state("queued")] == ["a", "c", "d"]


def test_events_count_up_and_are_read_from_any_of_them(store: JobStore) -> None:
    store.move("a", "running")
    store.record_log("a", "info", "a line")
    store.record_progress("a", {"step": 1}, {})
    assert [(event.seq, event.type) for event in store.events("a")] == [
        (1, "state"),
        (2, "state"),
        (3, "log"),
        (4, "progress"),
    ]
    assert [event.seq for event in store.events("a", after=2)] == [3, 4]
    assert [event.seq for event in store.events("a", after=1, limit=1)] == [2]
    assert store.events("a", after=2)[0].as_json() | {"time": 0} == {
        "seq": 3,
        "type": "log",
        "job": "a",
        "time": 0,
        "level": "info",
        "message": "a line",
    }


def test_of_many_events_those_of_progress_grow_thin_and_those_of_state_stay(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_PROGRESS_EVENTS", 10)
    monkeypatch.setattr(rows, "MAX_LOG_EVENTS", 5)
    for step in range(100):
        store.record_progress("a", {"step": step}, {})
        store.record_log("a", "info", str(step))
    store.move("a", "done")
    events = store.events("a")
    steps = [event.data["step"] for event in events if event.type == "progress"]
    assert 5 <= len(steps) <= 10
    assert steps[-1] == 99
    assert steps[0] < 50
    assert [event.data["message"] for event in events if event.type == "log"] == ["95", "96", "97", "98", "99"]
    assert [event.data["state"] for event in events if event.type == "state"] == ["queued", "done"]


def test_what_json_cannot_hold_is_replaced(store: JobStore) -> None:
    store.record_progress("a", {"losses": {"mse": float("nan")}, "sizes": (1, float("inf"))}, {})
    store.move("a", "failed", error="no file \udcff")
    job = store.find("a")
    assert job is not None
    assert job.progress == {"losses": {"mse": None}, "sizes": [1, None]}
    assert job.error == "no file ?"


def test_the_first_outcome_counts_and_a_new_start_forgets_it(store: JobStore) -> None:
    store.record_outcome("a", Outcome("finished", result={"x": 1}))
    store.record_outcome("a", Outcome("stopped"))
    assert store.outcome("a") == Outcome("finished", result={"x": 1})
    store.move("a", "running")
    assert store.outcome("a") is None


def test_deaths_count_from_the_last_progress_on(store: JobStore) -> None:
    counts = [store.count_death("a"), store.count_death("a")]
    store.record_progress("a", {}, {"Counting": 5})
    counts += [store.count_death("a"), store.count_death("a")]
    assert counts == [1, 2, 1, 2]


def test_ended_jobs_beyond_some_are_forgotten_with_their_events(store: JobStore) -> None:
    for name in "bcd":
        store.add(Job(name, "train", SPEC))
        store.move(name, "done")
    assert sorted(store.prune(1)) == ["b", "c"]
    assert [job.id for job in store.newest(10)] == ["d", "a"]
    assert store.events("b") == []


def test_threads_and_processes_write_at_the_same_time(store: JobStore) -> None:
    processes = [writer(store, 50), writer(store, 50)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: store.record_progress("a", {"step": step}, {}), range(100)))
    assert [close(process) for process in processes] == [0, 0]
    assert [event.seq for event in store.events("a")] == list(range(1, 202))


def test_a_writer_that_is_killed_leaves_whole_events_and_a_file_that_can_be_written(store: JobStore) -> None:
    for _ in range(3):
        process = writer(store, 10**6)
        seen = len(store.events("a", limit=10**6))
        while len(store.events("a", limit=10**6)) < seen + 5:
            pass
        os.kill(process.pid, signal.SIGKILL)
        assert close(process) == -signal.SIGKILL
    store.move("a", "done")
    seqs = [event.seq for event in store.events("a", limit=10**6)]
    assert seqs == sorted(set(seqs))
    job = store.find("a")
    assert job is not None
    assert job.state == "done"
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_locked_file_is_opened_and_read_and_a_write_waits_no_longer_than_it_may(store: JobStore) -> None:
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with JobStore(store.path, busy_s=0.01) as hasty:
        assert hasty.find("a") is not None
        with pytest.raises(UnavailableError, match="locked") as caught:
            hasty.move("a", "running")
        assert caught.value.retry_after_s > 0
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(store.move, "a", "running")  # waits for half a minute
            assert [job.state for job in store.newest(1)] == ["queued"]
            assert not writing.done()
            holder.execute("ROLLBACK")
            writing.result()
        assert [job.state for job in store.newest(1)] == ["running"]
    holder.close()


def test_a_file_of_a_newer_version_is_refused(store: JobStore) -> None:
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="newer steerserve"):
        JobStore(store.path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_text("something else entirely", encoding="ascii")
    with pytest.raises(ConfigError, match="Move the file away"):
        JobStore(tmp_path / "jobs.sqlite3")

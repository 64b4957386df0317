"""Jobs start in order, end in one way, and outlive whatever dies around them."""

from __future__ import annotations

import functools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import ConfigError, ConflictError, DictionarySourceError, NotFoundError, UnavailableError
from steerserve.core.lock import FileLock
from steerserve.jobs import supervisor as supervisor_module
from steerserve.jobs.job import Job
from steerserve.jobs.process import OwnProcess
from steerserve.jobs.store import JobStore
from steerserve.jobs.worker import EXIT_BUSY, lock_path, log_path
from tests.jobs.conftest import end_of_job, stand_in_command, until, wait_for

if TYPE_CHECKING:
    from steerserve.jobs.supervisor import Supervisor
    from tests.jobs.conftest import Counting

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def states(supervisor: Supervisor, job: Job) -> list[str]:
    return [event.data["state"] for event in supervisor.events(job.id, 0) if event.type == "state"]


def worker_pid(supervisor: Supervisor, job: Job) -> int:
    assert supervisor._runner is not None
    worker = supervisor._runner._running[job.id]
    assert isinstance(worker, OwnProcess)
    return worker._process.pid


def test_a_server_without_jobs_writes_nothing(counting: Counting) -> None:
    supervisor = counting.supervisor()
    assert supervisor.newest(10) == []
    with pytest.raises(NotFoundError):
        supervisor.find("train-a-0")
    with pytest.raises(NotFoundError):
        supervisor.cancel("train-a-0")
    supervisor.stop()
    assert list(counting.folder.iterdir()) == []


def test_a_job_ends_with_its_result_and_reports_its_progress(counting: Counting) -> None:
    supervisor = counting.supervisor()
    job = supervisor.submit("train", "one", counting.spec("one"))
    assert job.as_json() | {"created": 0} == {
        "id": job.id,
        "kind": "train",
        "state": "queued",
        "progress": {},
        "error": None,
        "result": None,
        "created": 0,
        "started": None,
        "ended": None,
    }
    done = wait_for(supervisor, job, "done")
    assert states(supervisor, job) == ["queued", "running", "done"]
    assert done.result == {"dictionaries": [{"id": "one", "source": "path:one", "counted": 3, "from": 0}]}
    figures = {"stage": "Counting", "done": 3, "total": 3, "step": 3, "num_steps": 3, "tokens": 30, "l0": 3.0}
    assert figures.items() <= done.progress.items()
    assert supervisor.events(job.id, 0)[-1].data == {"state": "done", "result": done.result}
    assert counting.loaded == []


def test_jobs_run_in_order_and_no_more_at_once_than_allowed(counting: Counting) -> None:
    supervisor = counting.supervisor(max_running=2)
    jobs = [supervisor.submit("train", name, counting.spec(name, hold_at=1)) for name in "abcd"]
    counting.until(lambda: counting.is_held("a", 1) and counting.is_held("b", 1))
    assert [supervisor.find(job.id).state for job in jobs] == ["running", "running", "queued", "queued"]
    counting.go("b")
    counting.wait_until_held("c", 1)
    assert [supervisor.find(job.id).state for job in jobs] == ["running", "done", "running", "queued"]
    for name in "acd":
        counting.folder.joinpath(name).mkdir(exist_ok=True)
        counting.go(name)
    ended = [wait_for(supervisor, job, "done") for job in jobs]
    starts = [job.started for job in ended if job.started is not None]
    assert starts == sorted(starts)
    assert [job.id for job in supervisor.newest(10)] == [job.id for job in reversed(jobs)]


def test_a_queued_job_is_cancelled_at_once_and_never_starts(counting: Counting) -> None:
    supervisor = counting.supervisor()
    first = supervisor.submit("train", "a", counting.spec("a", hold_at=1))
    second = supervisor.submit("train", "b", counting.spec("b"))
    assert supervisor.cancel(second.id).state == "cancelled"
    counting.wait_until_held("a", 1)
    counting.go("a")
    wait_for(supervisor, first, "done")
    assert counting.starts("b") == []
    assert supervisor.cancel(second.id) == supervisor.find(second.id)


def test_a_running_job_that_is_cancelled_keeps_its_checkpoint(counting: Counting) -> None:
    supervisor = counting.supervisor()
    job = supervisor.submit("train", "a", counting.spec("a", hold_at=2))
    counting.wait_until_held("a", 2)
    supervisor.cancel(job.id)
    assert wait_for(supervisor, job, "cancelled").error is None
    assert supervisor.cancel(job.id).state == "cancelled"
    again = supervisor.submit("train", "a", counting.spec("a"))
    result = wait_for(supervisor, again, "done").result
    assert result is not None
    assert result["dictionaries"][0]["from"] == 2


def test_a_job_that_does_not_listen_is_ended_all_the_same(counting: Counting) -> None:
    supervisor = counting.supervisor()
    job = supervisor.submit("train", "a", counting.spec("a", hold_at=2, deaf=True))
    counting.wait_until_held("a", 2)
    supervisor.cancel(job.id)
    wait_for(supervisor, job, "cancelled")


def test_a_job_whose_process_is_killed_goes_on_from_its_checkpoint(counting: Counting) -> None:
    supervisor = counting.supervisor()
    job = supervisor.submit("train", "a", counting.spec("a", hold_at=2))
    counting.wait_until_held("a", 2)
    os.kill(worker_pid(supervisor, job), signal.SIGKILL)
    counting.until(lambda: len(counting.starts("a")) == 2)
    counting.go("a")
    wait_for(supervisor, job, "done")
    assert counting.starts("a") == [0, 2]
    assert states(supervisor, job) == ["queued", "running", "queued", "running", "done"]
    messages = [event.data.get("message", "") for event in supervisor.events(job.id, 0)]
    assert any("SIGKILL" in message for message in messages)


def test_a_job_whose_progress_and_end_cannot_be_written_works_on_and_ends_once_they_can(counting: Counting) -> None:
    supervisor = counting.supervisor()
    job = supervisor.submit("train", "a", counting.spec("a", hold_at=2))
    counting.wait_until_held("a", 2)
    holder = sqlite3.connect(supervisor.store_path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    counting.go("a")
    log = log_path(supervisor.store_path, job.id)
    for message in ("a log line of the job is dropped", "a progress report is dropped", "cannot be written yet"):
        counting.until(functools.partial(lambda text: text in log.read_text(encoding="utf-8"), message))
    assert counting.starts("a") == [0]
    holder.execute("ROLLBACK")
    holder.close()
    wait_for(supervisor, job, "done")
    assert counting.starts("a") == [0]


def test_a_job_that_keeps_dying_at_one_step_fails_and_names_the_signal(counting: Counting) -> None:
    supervisor = counting.supervisor(max_attempts=2)
    job = supervisor.submit("train", "a", counting.spec("a", dies=3))
    failed = wait_for(supervisor, job, "failed")
    assert failed.error is not None
    assert "SIGKILL" in failed.error
    assert "2 times" in failed.error
    # Once from the beginning, then twice at most from where the first came to.
    assert counting.starts("a") in ([0, 2], [0, 2, 2])


def test_a_job_that_fails_says_why(counting: Counting) -> None:
    supervisor = counting.supervisor()
    job = supervisor.submit("train", "a", counting.spec("a", fails="The text is too short; give more."))
    assert wait_for(supervisor, job, "failed").error == "The text is too short; give more."
    assert supervisor.events(job.id, 0)[-1].data == {"state": "failed", "error": "The text is too short; give more."}


def test_an_unexpected_error_becomes_one_line_and_its_traceback_is_logged(counting: Counting) -> None:
    supervisor = counting.supervisor()
    job = supervisor.submit("train", "a", counting.spec("a", breaks="first line\nsecond line"))
    assert wait_for(supervisor, job, "failed").error == "ZeroDivisionError: first line"
    log = log_path(supervisor.store_path, job.id).read_text(encoding="utf-8")
    assert "Traceback" in log
    assert "second line" in log


def test_a_stopped_servers_jobs_go_on_when_it_is_back(counting: Counting) -> None:
    first = counting.supervisor()
    running = first.submit("train", "a", counting.spec("a", hold_at=2))
    queued = first.submit("train", "b", counting.spec("b"))
    counting.wait_until_held("a", 2)
    first.stop()
    first.stop()
    with JobStore(first.store_path) as store:
        assert [job.state for job in store.newest(10)] == ["queued", "queued"]
    counting.go("a")
    second = counting.supervisor()
    for job in (running, queued):
        wait_for(second, job, "done")
    assert counting.starts("a") == [0, 2]


def test_the_jobs_of_a_server_that_was_killed_go_on_when_it_is_back(counting: Counting) -> None:
    command = [sys.executable, str(Path(__file__).with_name("server_stand_in.py")), str(counting.folder)]
    server = subprocess.Popen(
        [*command, json.dumps(counting.spec("a", hold_at=2).to_json())],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert server.stdout is not None
    job_id = server.stdout.readline().strip()
    until(
        lambda: counting.is_held("a", 2),
        lambda: None if server.poll() is None else f"the server ended with exit code {server.returncode}",
    )
    server.kill()
    server.wait()
    server.stdout.close()
    supervisor = counting.supervisor()
    counting.until(lambda: len(counting.starts("a")) == 2)
    counting.go("a")
    wait_for(supervisor, supervisor.find(job_id), "done")
    assert counting.starts("a") == [0, 2]


def left_by_a_dead_server(counting: Counting, *, load: bool = False) -> Job:
    """Let a worker end whose server died in the meantime; return its job."""
    job = Job("train-one-0", "train", counting.spec("one", load=load))
    folder = counting.folder / ".jobs"
    folder.mkdir()
    with JobStore(folder / "jobs.sqlite3") as store:
        store.add(job)
        store.move(job.id, "running")
        with subprocess.Popen(stand_in_command(store.path, job.id), stdin=subprocess.PIPE) as worker:
            assert worker.wait() == 0
    return job


def test_a_job_that_finished_while_there_was_no_server_is_loaded_and_done(counting: Counting) -> None:
    job = left_by_a_dead_server(counting, load=True)
    supervisor = counting.supervisor()
    result = wait_for(supervisor, job, "done").result
    assert result is not None
    assert result["loaded"] == ["one"]
    assert counting.loaded == [("one", "path:one")]
    assert counting.starts("one") == [0]


def test_what_was_trained_is_loaded_before_the_job_is_done(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    supervisor = counting.supervisor(start=False)
    monkeypatch.setattr(supervisor, "_load", lambda *_: seen.append(supervisor.newest(1)[0].state))
    job = supervisor.submit("train", "one", counting.spec("one", load=True))
    wait_for(supervisor, job, "done")
    assert seen == ["running"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (DictionarySourceError("It does not fit."), "It does not fit."),
        (MemoryError("too much"), "The dictionary 'one' cannot be loaded: too much"),
    ],
)
def test_a_job_whose_result_cannot_be_loaded_is_done_and_says_so(
    counting: Counting, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    supervisor = counting.supervisor(start=False)
    monkeypatch.setattr(supervisor, "_load", refuse)
    job = supervisor.submit("train", "one", counting.spec("one", load=True))
    result = wait_for(supervisor, job, "done").result
    assert result is not None
    assert result["load_error"] == sentence
    assert result["loaded"] == []


def test_a_worker_leaves_a_job_alone_that_another_works_on(counting: Counting) -> None:
    folder = counting.folder / ".jobs"
    folder.mkdir()
    job = Job("train-one-0", "train", counting.spec("one"))
    with JobStore(folder / "jobs.sqlite3") as store, FileLock(lock_path(store.path, job.id)) as lock:
        assert lock.acquire()
        store.add(job)
        store.move(job.id, "running")
        with subprocess.Popen(stand_in_command(store.path, job.id), stdin=subprocess.PIPE) as worker:
            assert worker.stdin is not None
            worker.stdin.close()  # so that it does not wait for the other
            assert worker.wait() == EXIT_BUSY
        assert store.outcome(job.id) is None
    assert counting.starts("one") == []


def test_a_dictionary_that_a_job_works_on_is_busy(counting: Counting) -> None:
    supervisor = counting.supervisor()
    job = supervisor.submit("train", "a", counting.spec("a", hold_at=1, claims=("a", "a-1")))
    for claims in (("a",), ("b", "a-1")):
        with pytest.raises(ConflictError) as caught:
            supervisor.submit("train", "a", counting.spec("a", claims=claims))
        assert (caught.value.code, caught.value.param) == ("dictionary_busy", "id")
        assert job.id in caught.value.message
    supervisor.cancel(job.id)
    wait_for(supervisor, job, "cancelled")
    supervisor.submit("train", "a", counting.spec("a"))


def test_a_second_server_on_the_folder_only_reads_until_the_first_is_gone(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_LOCK_POLL_S", 0.05)
    first = counting.supervisor()
    job = first.submit("train", "a", counting.spec("a", hold_at=2))
    counting.wait_until_held("a", 2)
    second = counting.supervisor()
    with pytest.raises(ConflictError, match="dictionary_dirs") as submitting:
        second.submit("train", "b", counting.spec("b"))
    with pytest.raises(ConflictError) as cancelling:
        second.cancel(job.id)
    assert submitting.value.code == cancelling.value.code == "jobs_folder_busy"
    assert second.find(job.id).state == "running"
    first.stop()
    counting.go("a")
    wait_for(second, job, "done")
    assert counting.starts("a") == [0, 2]


def test_a_folder_that_cannot_be_created_is_reported(counting: Counting) -> None:
    (counting.folder / ".jobs").touch()
    with pytest.raises(ConflictError) as caught:
        counting.supervisor().submit("train", "a", counting.spec("a"))
    assert caught.value.code == "jobs_folder_unusable"


def test_jobs_that_cannot_be_read_keep_the_server_from_starting(counting: Counting) -> None:
    supervisor = counting.supervisor(start=False)
    supervisor.store_path.parent.mkdir()
    supervisor.store_path.write_text("something else entirely", encoding="ascii")
    with pytest.raises(ConfigError, match="dictionary_dirs"):
        supervisor.start()
    with pytest.raises(ConflictError):
        supervisor.submit("train", "a", counting.spec("a"))


def test_jobs_whose_folder_cannot_be_written_now_are_read_and_go_on_when_it_can(
    counting: Counting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = counting.supervisor()
    job = first.submit("train", "a", counting.spec("a", hold_at=1))
    counting.wait_until_held("a", 1)
    first.stop()
    monkeypatch.setattr(supervisor_module, "_AFTER_FAILURE_S", 0.05)
    lock = first.store_path.with_name("server.lock")
    lock.unlink()
    lock.mkdir()  # as little a file to be opened as in a folder where nothing may be written
    second = counting.supervisor()
    counting.until(lambda: "cannot be run" in caplog.text)
    assert second.find(job.id).state == "queued"
    with pytest.raises(ConflictError) as caught:
        second.submit("train", "b", counting.spec("b"))
    assert caught.value.code == "jobs_folder_unusable"
    lock.rmdir()
    counting.go("a")
    wait_for(second, job, "done")
    assert caplog.text.count("cannot be run") == 1


def test_a_locked_file_of_jobs_does_not_keep_the_server_from_starting(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_BUSY_S", 0.01)
    monkeypatch.setattr(supervisor_module, "_AFTER_FAILURE_S", 0.05)
    supervisor = counting.supervisor(start=False)
    job = left_by_a_dead_server(counting)
    holder = sqlite3.connect(supervisor.store_path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("UPDATE jobs SET kind = kind")
    supervisor.start()
    with pytest.raises(UnavailableError, match="locked"):
        supervisor.find(job.id)
    holder.execute("ROLLBACK")
    holder.close()
    wait_for(supervisor, job, "done")


def test_a_process_that_ends_without_an_outcome_fails_the_job(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = counting.supervisor(max_attempts=2)
    monkeypatch.setattr(supervisor, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit(7)"])
    job = supervisor.submit("train", "a", counting.spec("a"))
    error = wait_for(supervisor, job, "failed").error
    assert error == "The job's process ended with exit code 7, 2 times in a row without progress."


def test_a_job_that_ends_for_its_disk_says_so(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = counting.supervisor(max_attempts=1)
    monkeypatch.setattr(supervisor, "_command", lambda *_: [sys.executable, "-c", "import os; os.kill(os.getpid(), 7)"])
    error = wait_for(supervisor, supervisor.submit("train", "a", counting.spec("a")), "failed").error
    assert error is not None
    assert "SIGBUS" in error
    assert "disk" in error
    assert "Memory" not in error


def test_a_process_that_cannot_be_started_fails_the_job(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = counting.supervisor()
    monkeypatch.setattr(supervisor, "_command", lambda *_: [str(counting.folder / "none")])
    job = supervisor.submit("train", "a", counting.spec("a"))
    assert "could not be started" in (wait_for(supervisor, job, "failed").error or "")


def test_a_worker_has_the_lowest_priority_few_threads_and_no_keys(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERSERVE_ADMIN_KEY", "secret")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    supervisor = counting.supervisor()
    job = supervisor.submit("train", "a", counting.spec("a", hold_at=1, threads=2))
    counting.wait_until_held("a", 1)
    pid = worker_pid(supervisor, job)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert {b"OMP_NUM_THREADS=2", b"GOMP_SPINCOUNT=1000"} <= set(environment)
    assert not any(entry.startswith((b"STEERSERVE_ADMIN_KEY", b"OMP_WAIT_POLICY")) for entry in environment)


def test_waiting_for_a_dead_worker_ends_at_once_with_its_exit_code_and_its_log(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = counting.supervisor(max_attempts=3)
    script = "import sys; print('no such module'); sys.exit(3)"
    monkeypatch.setattr(supervisor, "_command", lambda *_: [sys.executable, "-c", script])
    job = supervisor.submit("train", "a", counting.spec("a"))
    with pytest.raises(AssertionError, match="exit code 3") as caught:
        counting.wait_until_held("a", 1)
    assert "no such module" in str(caught.value)
    assert "exit code 3" in (end_of_job(supervisor, job.id) or "")

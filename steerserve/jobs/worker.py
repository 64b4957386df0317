"""The process of one job: `python -m steerserve.jobs.worker STORE JOB_ID`.

The supervisor starts it with a pipe as its standard input; the end of that input means that the server is gone. The
worker writes its progress and its outcome into the store; the supervisor derives the job's state from them.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import SteerserveError, UnavailableError
from steerserve.core.lock import FileLock
from steerserve.core.log import set_up_logging
from steerserve.core.observer import StoppedError
from steerserve.jobs.job import Outcome
from steerserve.jobs.observer import JobObserver
from steerserve.jobs.priority import lower_priority
from steerserve.jobs.store import JobStore
from steerserve.jobs.work import WORK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.core.literals import JobKind
    from steerserve.jobs.job import Job
    from steerserve.jobs.work import Work

EXIT_BUSY = 75
"""Exit code of a worker whose job another process works on."""
GRACE_S = 20.0
"""Time that a run has for saving its work after a stop request."""
_LOCK_WAIT_S = 60.0
_LOCK_POLL_S = 0.1
_BUSY_S = 5.0
"""How long a progress report waits for another writer of the store before it is dropped."""
_OUTCOME_WAIT_S = 600.0
_OUTCOME_POLL_S = 0.5
_MAX_MESSAGE_CHARS = 500
_log = logging.getLogger(__name__)


def main() -> None:
    """Work on the job that the command line names."""
    store, job_id = sys.argv[1:]
    sys.exit(run_worker(Path(store), job_id, WORK))


def run_worker(
    store_path: Path, job_id: str, work: Mapping[JobKind, Work], *, grace_s: float = GRACE_S, busy_s: float = _BUSY_S
) -> int:
    """Work on a job until it finishes, fails or is stopped; return the exit code."""
    faulthandler.enable()
    lower_priority()
    set_up_logging()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which stops its workers itself
    threading.Thread(target=_await_server_end, args=(stop,), daemon=True).start()
    with FileLock(lock_path(store_path, job_id)) as lock, JobStore(store_path, busy_s=busy_s) as store:
        if not _wait_for(lock, stop):
            return EXIT_BUSY
        job = store.find(job_id)
        if job is None or job.state != "running" or store.outcome(job_id) is not None:
            return 0
        logging.getLogger("steerserve").addHandler(_EventHandler(store, job_id))
        furthest = store.furthest(job_id)

        def record(progress: Mapping[str, Any], furthest: Mapping[str, int]) -> None:
            try:
                store.record_progress(job_id, progress, furthest)
            except UnavailableError as error:  # a report is not worth losing the run for
                _log.warning("a progress report is dropped: %s", error)

        record({"stage": "Starting"}, furthest)
        observer = JobObserver(record, stop, furthest)
        threading.Thread(target=_end_in_time, args=(stop, store, job_id, observer, grace_s), daemon=True).start()
        _record_outcome(store, job_id, _outcome(job, work, observer))
    return 0


def lock_path(store_path: Path, job_id: str) -> Path:
    """Return the file whose lock the process that works on the job holds."""
    return store_path.parent / f"{job_id}.lock"


def log_path(store_path: Path, job_id: str) -> Path:
    """Return the file with the output of the job's workers."""
    return store_path.parent / f"{job_id}.log"


def _wait_for(lock: FileLock, stop: threading.Event) -> bool:
    """Wait until a worker that an earlier server left behind has ended; return whether it has."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    while not lock.acquire():
        if time.monotonic() >= deadline or stop.wait(_LOCK_POLL_S):
            return False
    return True


def _outcome(job: Job, work: Mapping[JobKind, Work], observer: JobObserver) -> Outcome:
    try:
        if observer.should_stop():
            return Outcome("stopped")
        return Outcome("finished", result=work[job.kind](job.spec, observer))
    except StoppedError:
        return Outcome("stopped")
    except SteerserveError as error:
        return Outcome("failed", error=error.message)
    except Exception as error:  # noqa: BLE001 any error becomes the job's error
        _log.exception("job %s failed", job.id)
        first_line = str(error).strip().partition("\n")[0][:_MAX_MESSAGE_CHARS]
        return Outcome("failed", error=f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__)


def _record_outcome(store: JobStore, job_id: str, outcome: Outcome) -> None:
    """Store how the work ended; try again for a while if another process locks the store."""
    deadline = time.monotonic() + _OUTCOME_WAIT_S
    while True:
        try:
            return store.record_outcome(job_id, outcome)
        except UnavailableError as error:
            if time.monotonic() >= deadline:
                raise
            _log.warning("the outcome cannot be written yet: %s", error)
            time.sleep(_OUTCOME_POLL_S)


def _await_server_end(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    stop.set()


def _end_in_time(stop: threading.Event, store: JobStore, job_id: str, observer: JobObserver, grace_s: float) -> None:
    """End the process after a stop request: at once while there is nothing to save, else after `grace_s`."""
    stop.wait()
    if observer.has_begun:
        threading.Event().wait(grace_s)
    try:
        store.record_outcome(job_id, Outcome("stopped"))
    finally:
        os._exit(0)  # the main thread may be deep in a library; the files that it writes are complete or absent


class _EventHandler(logging.Handler):
    """Turns the log lines of steerserve into events of the job."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        super().__init__(logging.INFO)
        self._store = store
        self._job_id = job_id

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _log.name:
            return  # about the store itself
        # Without the traceback, which is in the log file.
        message = record.getMessage()[:_MAX_MESSAGE_CHARS]
        try:
            self._store.record_log(self._job_id, record.levelname.lower(), message)
        except UnavailableError as error:
            _log.warning("a log line of the job is dropped: %s", error)


if __name__ == "__main__":
    main()

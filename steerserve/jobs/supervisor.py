"""The jobs of a server: taken, listed and cancelled here, and looked after by a thread. One server to a folder."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    QueueFullError,
    SteerserveError,
    UnavailableError,
)
from steerserve.core.lock import FileLock
from steerserve.jobs.job import Job, new_job_id
from steerserve.jobs.runner import STOP_GRACE_S, JobRunner, worker_command
from steerserve.jobs.store import JobStore
from steerserve.jobs.worker import lock_path, log_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from steerserve.core.config import JobSettings
    from steerserve.core.literals import JobKind, JobState
    from steerserve.jobs.job import JobEvent
    from steerserve.jobs.runner import LoadDictionary, WorkerCommand

MAX_ACTIVE = 256
KEPT_JOBS = 1000
"""Ended jobs that are remembered."""
_BUSY_S = 5.0
"""How long a request waits for whoever else writes the file."""
_POLL_S = 0.1
_LOCK_POLL_S = 1.0
_AFTER_FAILURE_S = 2.0
_log = logging.getLogger(__name__)


class Supervisor:
    """Any thread but the event loop's, since its methods may wait for the disk.

    Nothing is written before the first job; where there are jobs from before, they go on after `start`.
    """

    def __init__(
        self,
        dictionary_dir: Path,
        settings: JobSettings,
        load: LoadDictionary,
        *,
        command: WorkerCommand = worker_command,
        grace_s: float = STOP_GRACE_S,
    ) -> None:
        """Keep jobs in `.jobs` below `dictionary_dir`; `load` is called for a trained dictionary to be served."""
        self._folder = dictionary_dir.absolute() / ".jobs"
        self._settings = settings
        self._load = load
        self._command = command
        self._grace_s = grace_s
        self._lock = FileLock(self._folder / "server.lock")
        self._changed = threading.Condition()
        self.admission = threading.Lock()
        """To be held from looking at what other jobs need until a job is queued, or two would get the same room."""
        self._store: JobStore | None = None
        self._runner: JobRunner | None = None
        """There is one as long as this server owns the folder."""
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._is_told = False
        """Whether it has been logged that the jobs cannot be looked after."""

    @property
    def store_path(self) -> Path:
        """The file that holds the jobs, once there is any."""
        return self._folder / "jobs.sqlite3"

    def start(self) -> None:
        """Go on with the jobs that there are; where they cannot be read or written now, as soon as they can.

        Raises:
            ConfigError: the file that holds them cannot be used.
        """
        with self._changed:
            self._is_stopping = False
        try:
            self._opened()
        except UnavailableError as error:
            _log.warning("%s (%s)", error.message, self.store_path)
            with self._changed:
                self._start_thread()

    def stop(self) -> None:
        """Have the workers save what they have, and wait for that; their jobs go on after the next start."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._changed:
            self._runner = None
            self._lock.release()
            if self._store is not None:
                self._store.close()
                self._store = None

    def submit(self, kind: JobKind, subject: str, spec: Mapping[str, Any]) -> Job:
        """Queue a job about the dictionary `subject`.

        Args:
            kind: What is to be done.
            subject: The dictionary's id, which the job's id repeats.
            spec: What the worker gets. `claims`: ids of all dictionaries that it writes; `threads`; `cache_dir`;
                `load`: whether what comes out is to be served.

        Raises:
            ConflictError: another job works on one of them, another server on the folder, or it cannot be written.
            QueueFullError: too many wait.
            UnavailableError: something else holds the file that the jobs are in.
        """
        job = Job(new_job_id(kind, subject), kind, spec)
        with self._changed:
            store = self._owned_store()
            active = store.in_state("queued", "running")
            _check_claims(spec["claims"], active)
            if len(active) >= MAX_ACTIVE:
                message = f"{len(active)} jobs wait already. Try again when some are done, or cancel some."
                raise QueueFullError(message, retry_after_s=60)
            store.add(job)
            for forgotten in store.prune(KEPT_JOBS):
                lock_path(store.path, forgotten).unlink(missing_ok=True)
                log_path(store.path, forgotten).unlink(missing_ok=True)
            self._changed.notify_all()
        _log.info("job %s is queued", job.id)
        return job

    def cancel(self, job_id: str) -> Job:
        """Take a job from the queue, or have its worker stop, and return it; one that has ended stays as it is.

        Raises:
            NotFoundError: there is no such job.
            ConflictError: another server works in the folder.
        """
        job = self.find(job_id)
        if job.has_ended:
            return job
        with self._changed:
            store = self._owned_store()
            store.mark_cancelled(job_id)
            if self.find(job_id).state == "queued":
                store.move(job_id, "cancelled")
            elif self._runner is not None:
                store.record_log(job_id, "info", "The job is asked to stop.")
                self._runner.stop(job_id)
            self._changed.notify_all()
        return self.find(job_id)

    def find(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            NotFoundError: there is none of that id.
        """
        store = self._opened()
        job = store.find(job_id) if store is not None else None
        if job is None:
            message = f"There is no job {job_id[:200]!r}. GET /admin/jobs lists them."
            raise NotFoundError(message, param="job_id", code="job_not_found")
        return job

    def newest(self, limit: int, state: JobState | None = None) -> list[Job]:
        """Return up to `limit` jobs, of one state or any, the newest first."""
        store = self._opened()
        return store.newest(limit, state) if store is not None else []

    def active(self) -> list[Job]:
        """Return the jobs that have not ended, in order of creation."""
        store = self._opened()
        return store.in_state("queued", "running") if store is not None else []

    def promised_bytes(self) -> int:
        """Return the disk space that jobs which have not ended may still fill."""
        return sum(int(job.spec.get("disk_bytes", 0)) for job in self.active())

    def events(self, job_id: str, after: int) -> list[JobEvent]:
        """Return the next events of a job with a number over `after`, in order."""
        store = self._opened()
        return store.events(job_id, after=after) if store is not None else []

    def _opened(self) -> JobStore | None:
        """Return the store where there is one, whichever server owns it; from then on it is looked after.

        Once it is open this takes no lock: who reads does not wait for one who waits to write.
        """
        if (store := self._store) is not None or self._is_stopping or not self.store_path.is_file():
            return store
        with self._changed:
            if self._store is None and not self._is_stopping:
                self._store = JobStore(self.store_path, busy_s=_BUSY_S)
                self._start_thread()
            return self._store

    def _owned_store(self) -> JobStore:
        """Return the store to write to, made where there is none."""
        if self._is_stopping:
            message = "The server is stopping. Try again when it is back."
            raise UnavailableError(message, retry_after_s=10)
        advice = "put a folder of its own first in this server's dictionary_dirs"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            is_owned = self._own()
        except OSError as error:
            message = f"Jobs cannot be kept: {error}. Make that folder writable, or {advice}."
            raise ConflictError(message, code="jobs_folder_unusable") from error
        except ConfigError as error:
            raise ConflictError(error.message, code="jobs_folder_unusable") from error
        if not is_owned or self._store is None:
            message = f"Another server runs the jobs of this folder. Send the request there, or {advice}."
            raise ConflictError(message, code="jobs_folder_busy")
        self._start_thread()
        return self._store

    def _own(self) -> bool:
        """Take over the folder and the jobs that were running in it; returns whether they are this server's."""
        if not self._lock.acquire():
            return False
        if self._store is None:
            self._store = JobStore(self.store_path, busy_s=_BUSY_S)
        if self._runner is None:
            self._runner = JobRunner(
                self._store, self._settings, self._load, command=self._command, grace_s=self._grace_s
            )
        return True

    def _start_thread(self) -> None:
        if self._thread is None:
            # A daemon: where nobody calls `stop`, the workers notice that the server is gone.
            self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._look_after()
                self._is_told = False
            except Exception as error:  # noqa: BLE001 a full disk must not end the thread
                if not self._is_told:
                    unforeseen = None if isinstance(error, SteerserveError | OSError) else error
                    _log.warning("the jobs cannot be looked after; trying again: %s", error, exc_info=unforeseen)
                self._is_told = True
                with self._changed:
                    self._changed.wait(_AFTER_FAILURE_S)
        try:
            if self._runner is not None:
                self._runner.wind_up()
        except UnavailableError as error:
            _log.warning("the jobs that ran are settled at the next start: %s", error)

    def _look_after(self) -> None:
        """Settle what has ended, or else start what may run and wait for something to happen."""
        with self._changed:
            runner = self._runner if self._own() else None
            ended = runner.ended() if runner is not None else []
            if not ended:
                if runner is not None:
                    runner.start_queued()
                if not self._is_stopping:
                    self._changed.wait(_LOCK_POLL_S if runner is None else None if runner.is_idle else _POLL_S)
                return
        # Without the lock: loading a dictionary takes its time, and meanwhile jobs can be asked for.
        for job_id, found in ended:
            if runner is not None:
                runner.settle(job_id, found)


def _check_claims(claims: list[str], active: list[Job]) -> None:
    for other in active:
        if busy := sorted({*claims} & {*other.spec["claims"]}):
            message = (
                f"The job {other.id} ({other.state}) works on the dictionary {busy[0]!r}. Wait for its end, or cancel "
                f"it with DELETE /admin/jobs/{other.id}."
            )
            raise ConflictError(message, param="id", code="dictionary_busy")

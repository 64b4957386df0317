"""The jobs of a server: queued, listed and cancelled here, and run by a thread. One server per folder."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

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
    from collections.abc import Sequence
    from pathlib import Path

    from steerserve.core.config import JobSettings
    from steerserve.core.literals import JobKind, JobState
    from steerserve.jobs.job import JobEvent, JobSpec
    from steerserve.jobs.runner import LoadDictionary, WorkerCommand

MAX_ACTIVE = 256
"""Most jobs that are queued or run at once."""
KEPT_JOBS = 1000
"""Number of ended jobs that stay in the store."""
_BUSY_S = 5.0
"""How long a request waits for another writer of the file."""
_POLL_S = 0.1
_LOCK_POLL_S = 1.0
_AFTER_FAILURE_S = 2.0
_log = logging.getLogger(__name__)


class Supervisor:
    """Queues, lists and cancels jobs. Any thread but the event loop's, since its methods may wait for the disk.

    Nothing is written before the first job. Jobs that an earlier server left continue after `start`.
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
        """Keep jobs in `.jobs` below `dictionary_dir`; `load` is called for each trained dictionary to be served."""
        self._folder = dictionary_dir.absolute() / ".jobs"
        self._settings = settings
        self._load = load
        self._command = command
        self._grace_s = grace_s
        self._lock = FileLock(self._folder / "server.lock")
        self._changed = threading.Condition()
        self.admission = threading.Lock()
        """Held from adding up what other jobs need until a job is queued, so that no two get the same space."""
        self._store: JobStore | None = None
        self._runner: JobRunner | None = None
        """The workers, while this server owns the folder; None while it does not."""
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._is_failure_logged = False
        """Whether the log says already that the jobs cannot be run."""

    @property
    def store_path(self) -> Path:
        """The file that holds the jobs; it is created with the first job."""
        return self._folder / "jobs.sqlite3"

    def start(self) -> None:
        """Continue the jobs of an earlier server, as soon as their file can be read and written.

        Raises:
            ConfigError: the file that holds the jobs cannot be used.
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
        """Stop the workers and wait until they have saved their work; their jobs continue after the next start."""
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

    def submit(self, kind: JobKind, subject: str, spec: JobSpec) -> Job:
        """Queue a job about the dictionary `subject`.

        Args:
            kind: The kind of work.
            subject: The dictionary's id, which becomes a part of the job's id.
            spec: What the worker needs to know.

        Raises:
            ConflictError: another job claims one of the dictionaries, another server runs the jobs of this folder, or
                the folder cannot be written.
            QueueFullError: too many jobs wait.
            UnavailableError: another process locks the file of the jobs.
        """
        job = Job(new_job_id(kind, subject), kind, spec)
        with self._changed:
            store = self._owned_store()
            active = store.in_state("queued", "running")
            _check_claims(spec.claims, active)
            if len(active) >= MAX_ACTIVE:
                message = (
                    f"{len(active)} jobs wait or run already, the most that are allowed. Try again when one has ended."
                )
                raise QueueFullError(message, retry_after_s=60)
            store.add(job)
            for deleted in store.prune(KEPT_JOBS):
                lock_path(store.path, deleted).unlink(missing_ok=True)
                log_path(store.path, deleted).unlink(missing_ok=True)
            self._changed.notify_all()
        _log.info("job %s is queued", job.id)
        return job

    def cancel(self, job_id: str) -> Job:
        """Take a job from the queue, or stop its worker, and return the job; an ended job stays as it is.

        Raises:
            NotFoundError: no job has that id.
            ConflictError: another server runs the jobs of this folder.
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
                store.record_log(job_id, "info", "The job was requested to stop.")
                self._runner.stop(job_id)
            self._changed.notify_all()
        return self.find(job_id)

    def find(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            NotFoundError: no job has that id.
        """
        store = self._opened()
        job = store.find(job_id) if store is not None else None
        if job is None:
            message = f"No job has the id {job_id[:200]!r}. GET /admin/jobs lists the jobs."
            raise NotFoundError(message, param="job_id", code="job_not_found")
        return job

    def newest(self, limit: int, state: JobState | None = None) -> list[Job]:
        """Return up to `limit` jobs in one state or in any, the newest first."""
        store = self._opened()
        return store.newest(limit, state) if store is not None else []

    def active(self) -> list[Job]:
        """Return the jobs that have not ended, in order of creation."""
        store = self._opened()
        return store.in_state("queued", "running") if store is not None else []

    def promised_bytes(self) -> int:
        """Return the disk space that the active jobs may still fill."""
        return sum(job.spec.disk_bytes for job in self.active())

    def events(self, job_id: str, after: int) -> list[JobEvent]:
        """Return the next events of a job with a number over `after`, in order."""
        store = self._opened()
        return store.events(job_id, after=after) if store is not None else []

    def _opened(self) -> JobStore | None:
        """Return the store, whichever server owns it, and start the thread; None while no file exists.

        Once the store is open this takes no lock: a read never waits for a write.
        """
        if (store := self._store) is not None or self._is_stopping or not self.store_path.is_file():
            return store
        with self._changed:
            if self._store is None and not self._is_stopping:
                self._store = JobStore(self.store_path, busy_s=_BUSY_S)
                self._start_thread()
            return self._store

    def _owned_store(self) -> JobStore:
        """Return the store to write to; it is created if it does not exist."""
        if self._is_stopping:
            message = "The server is stopping. Try again after its restart."
            raise UnavailableError(message, retry_after_s=10)
        advice = "put a folder that no other server uses first in this server's dictionary_dirs"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            is_owned = self._own()
        except OSError as error:
            message = f"Jobs cannot be stored: {error}. Make that folder writable, or {advice}."
            raise ConflictError(message, code="jobs_folder_unusable") from error
        except ConfigError as error:
            raise ConflictError(error.message, code="jobs_folder_unusable") from error
        if not is_owned or self._store is None:
            message = f"Another server runs the jobs of this folder. Send the request there, or {advice}."
            raise ConflictError(message, code="jobs_folder_busy")
        self._start_thread()
        return self._store

    def _own(self) -> bool:
        """Take over the folder and its running jobs; return False if another server has them."""
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
            # A daemon: if nobody calls `stop`, the workers notice by themselves that the server is gone.
            self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._run_jobs()
                self._is_failure_logged = False
            except Exception as error:  # noqa: BLE001 a full disk must not end the thread
                if not self._is_failure_logged:
                    traceback = None if isinstance(error, SteerserveError | OSError) else error
                    _log.warning("the jobs cannot be run; trying again: %s", error, exc_info=traceback)
                self._is_failure_logged = True
                with self._changed:
                    self._changed.wait(_AFTER_FAILURE_S)
        try:
            if self._runner is not None:
                self._runner.wind_up()
        except UnavailableError as error:
            _log.warning("the state of the jobs that ran is updated after the next start: %s", error)

    def _run_jobs(self) -> None:
        """Settle the jobs whose worker has ended; if none has, start queued jobs and wait for a change."""
        with self._changed:
            runner = self._runner if self._own() else None
            ended = runner.ended() if runner is not None else []
            if not ended:
                if runner is not None:
                    runner.start_queued()
                if not self._is_stopping:
                    self._changed.wait(_LOCK_POLL_S if runner is None else None if runner.is_idle else _POLL_S)
                return
        # Without the lock: loading a dictionary takes long, and meanwhile clients submit and list jobs.
        for job_id, exit_ in ended:
            if runner is not None:
                runner.settle(job_id, exit_)


def _check_claims(claims: Sequence[str], active: Sequence[Job]) -> None:
    for other in active:
        if busy := sorted({*claims} & {*other.spec.claims}):
            message = (
                f"The job {other.id} ({other.state}) works on the dictionary {busy[0]!r}. Wait until it ends, or "
                f"cancel it with DELETE /admin/jobs/{other.id}."
            )
            raise ConflictError(message, param="id", code="dictionary_busy")

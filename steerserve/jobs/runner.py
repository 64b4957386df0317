"""From queued to ended: which worker is started when, and what its end makes of the job."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import SteerserveError
from steerserve.jobs.admission import disk_shortage
from steerserve.jobs.priority import worker_environment
from steerserve.jobs.process import Orphan, Worker
from steerserve.jobs.worker import EXIT_BUSY, lock_path, log_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from steerserve.core.config import JobSettings
    from steerserve.jobs.job import Job, Outcome
    from steerserve.jobs.process import Exit, Process
    from steerserve.jobs.store import JobStore

    LoadDictionary = Callable[[str, str], object]
    """Serves the dictionary of an id and a source from now on; may raise any error."""
    WorkerCommand = Callable[[Path, str], Sequence[str]]
    """Gives the command line of the worker for a store and a job."""

STOP_GRACE_S = 25.0
"""A worker that was asked to stop is killed after so long; it gives itself a little less."""
_POLL_S = 0.05
_SHORT_MEMORY = "Memory may be short: try a smaller d_sae, batch_size or context_size."
_ADVICE: Mapping[int, str] = {
    signal.SIGBUS: "The disk may be full or damaged: free some of it, give fewer tokens, or 'storage': 'buffer'."
}
"""Where a signal says another thing."""
_log = logging.getLogger(__name__)


def worker_command(store: Path, job_id: str) -> Sequence[str]:
    """Return the command line of a worker. The working directory is no place for its modules (`-P`)."""
    return [sys.executable, "-P", "-m", "steerserve.jobs.worker", str(store), job_id]


class JobRunner:
    """The workers of one server. `settle` may take long (it loads dictionaries); the others do not."""

    def __init__(
        self,
        store: JobStore,
        settings: JobSettings,
        load: LoadDictionary,
        *,
        command: WorkerCommand,
        grace_s: float,
    ) -> None:
        """Take over the jobs that an earlier server left running."""
        self._store = store
        self._settings = settings
        self._load = load
        self._command = command
        self._grace_s = grace_s
        left = store.in_state("running")
        self._running: dict[str, Process] = {job.id: Orphan(lock_path(store.path, job.id)) for job in left}

    @property
    def is_idle(self) -> bool:
        """Whether no worker runs."""
        return not self._running

    def start_queued(self) -> None:
        """Start as many jobs as may run, in order of creation."""
        for job in self._store.in_state("queued"):
            if self._store.is_cancelled(job.id):
                self._store.move(job.id, "cancelled")
            elif len(self._running) < self._settings.max_running:
                self._start(job)

    def stop(self, job_id: str) -> None:
        """Ask the worker of a job to save what it has and end, if there is one."""
        if job_id in self._running:
            self._running[job_id].stop()

    def ended(self) -> list[tuple[str, Exit]]:
        """Return the jobs whose worker is gone, to be settled."""
        polled = [(job_id, process.poll()) for job_id, process in self._running.items()]
        return [(job_id, found) for job_id, found in polled if found is not None]

    def settle(self, job_id: str, found: Exit) -> None:
        """Give a job whose worker is gone the state that follows from how it ended."""
        job, outcome = self._store.find(job_id), self._store.outcome(job_id)
        if job is not None and outcome is not None and outcome.kind == "finished":
            # Loaded before it is done: who waits for "done" may use the dictionary.
            self._store.move(job_id, "done", result=self._loaded(job, outcome))
        elif job is not None:
            self._settle_unfinished(job, outcome, found)
        del self._running[job_id]

    def wind_up(self) -> None:
        """Have all workers save what they have, and wait for them; their jobs can go on after the next start."""
        own = {job_id: process for job_id, process in self._running.items() if isinstance(process, Worker)}
        for process in own.values():
            process.stop()
        while any(process.poll() is None for process in own.values()):
            time.sleep(_POLL_S)
        for job_id in own:
            job, outcome = self._store.find(job_id), self._store.outcome(job_id)
            if job is None or (outcome is not None and outcome.kind == "finished"):
                continue  # stays as it is: the next start loads and settles it
            if outcome is None or outcome.kind == "stopped":
                self._requeue(job, "The server stopped; the job goes on when it is back.")
            else:
                self._store.move(job_id, "failed", error=outcome.error)
        self._running.clear()

    def _start(self, job: Job) -> None:
        if shortage := disk_shortage(job, self._store.path.parent):
            self._store.move(job.id, "failed", error=shortage)
            return
        self._store.move(job.id, "running")
        environment = worker_environment(os.environ, threads=job.spec["threads"], cache_dir=Path(job.spec["cache_dir"]))
        command = self._command(self._store.path, job.id)
        try:
            worker = Worker(command, environment, log_path(self._store.path, job.id), grace_s=self._grace_s)
        except OSError as error:
            self._store.move(job.id, "failed", error=f"The job's process could not be started: {error}.")
            return
        self._running[job.id] = worker
        _log.info("job %s runs", job.id)

    def _settle_unfinished(self, job: Job, outcome: Outcome | None, found: Exit) -> None:
        if outcome is not None and outcome.kind == "failed":
            _log.warning("job %s failed: %s", job.id, outcome.error)
            self._store.move(job.id, "failed", error=outcome.error)
        elif self._store.is_cancelled(job.id):
            _log.info("job %s is cancelled", job.id)
            self._store.move(job.id, "cancelled")
        elif outcome is not None:
            self._requeue(job, "The job was stopped, and goes on from where it was.")
        elif found.status == EXIT_BUSY:
            self._requeue(job, "Another process still works on the job.")
        else:
            self._settle_death(job, found)

    def _settle_death(self, job: Job, found: Exit) -> None:
        num_deaths = self._store.count_death(job.id)
        _log.warning(
            "the process of job %s %s; what it printed is in %s", job.id, found, log_path(self._store.path, job.id)
        )
        if num_deaths < self._settings.max_attempts:
            self._requeue(job, f"The job's process {found}; the job goes on from its last checkpoint.")
            return
        often = "" if num_deaths == 1 else f", {num_deaths} times in a row without getting further"
        advice = _ADVICE.get(-found.status, _SHORT_MEMORY) if found.status is not None and found.status < 0 else ""
        self._store.move(job.id, "failed", error=f"The job's process {found}{often}. {advice}".rstrip())

    def _requeue(self, job: Job, message: str) -> None:
        self._store.move(job.id, "queued", message=message)

    def _loaded(self, job: Job, outcome: Outcome) -> Mapping[str, Any]:
        """Load what came out where that was asked for, and return the result with what came of it."""
        result = dict(outcome.result or {})
        if not job.spec.get("load") or self._store.is_cancelled(job.id):
            return result
        result["loaded"] = []
        for trained in result["dictionaries"]:
            try:
                self._load(trained["id"], trained["source"])
            except SteerserveError as error:
                return {**result, "load_error": error.message}
            except Exception as error:  # noqa: BLE001 the job is done all the same
                _log.exception("the result of job %s cannot be loaded", job.id)
                return {**result, "load_error": f"The dictionary {trained['id']!r} cannot be loaded: {error}"}
            result["loaded"].append(trained["id"])
        return result

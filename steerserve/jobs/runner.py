"""The workers of one server: which job starts when, and which state a job gets when its worker ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import SteerserveError
from steerserve.jobs.needs import disk_shortage
from steerserve.jobs.priority import worker_environment
from steerserve.jobs.process import OrphanProcess, OwnProcess
from steerserve.jobs.worker import EXIT_BUSY, lock_path, log_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from steerserve.core.config import JobSettings
    from steerserve.jobs.job import Job, Outcome
    from steerserve.jobs.process import Exit, Process
    from steerserve.jobs.store import JobStore

    LoadDictionary = Callable[[str, str], object]
    """Loads the dictionary of an id and a source, to be served; may raise any error."""
    WorkerCommand = Callable[[Path, str], Sequence[str]]
    """Returns the command line of the worker for a store and a job."""

STOP_GRACE_S = 25.0
"""Time after a stop request at which a worker is killed; the worker ends itself a little earlier."""
_POLL_S = 0.05
_SHORT_MEMORY = "Memory may be short: send a smaller d_sae, batch_size or context_size."
_ADVICE: Mapping[int, str] = {
    signal.SIGBUS: "The disk may be full or damaged: free some of it, or send fewer tokens or 'storage': 'buffer'."
}
"""Advice for signals that do not mean a shortage of memory."""
_log = logging.getLogger(__name__)


def worker_command(store: Path, job_id: str) -> Sequence[str]:
    """Return the command line of a worker. `-P` keeps it from importing modules of the working directory."""
    return [sys.executable, "-P", "-m", "steerserve.jobs.worker", str(store), job_id]


class JobRunner:
    """Starts, stops and settles workers. `settle` may take long, since it loads dictionaries; the others do not."""

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
        orphans = store.in_state("running")
        self._running: dict[str, Process] = {job.id: OrphanProcess(lock_path(store.path, job.id)) for job in orphans}

    @property
    def is_idle(self) -> bool:
        """Whether no worker runs."""
        return not self._running

    def start_queued(self) -> None:
        """Start as many jobs as may run at once, in order of creation."""
        for job in self._store.in_state("queued"):
            if self._store.is_cancelled(job.id):
                self._store.move(job.id, "cancelled")
            elif len(self._running) < self._settings.max_running:
                self._start(job)

    def stop(self, job_id: str) -> None:
        """Request that the worker of a job, if it has one, saves its work and ends."""
        if job_id in self._running:
            self._running[job_id].stop()

    def ended(self) -> list[tuple[str, Exit]]:
        """Return the jobs whose worker has ended, to be settled."""
        exits = [(job_id, process.poll()) for job_id, process in self._running.items()]
        return [(job_id, exit_) for job_id, exit_ in exits if exit_ is not None]

    def settle(self, job_id: str, exit_: Exit) -> None:
        """Give a job whose worker has ended the state that follows from how it ended."""
        job, outcome = self._store.find(job_id), self._store.outcome(job_id)
        if job is not None and outcome is not None and outcome.kind == "finished":
            # Loaded before the job is done: a client that waits for "done" may use the dictionary at once.
            self._store.move(job_id, "done", result=self._loaded(job, outcome))
        elif job is not None:
            self._settle_unfinished(job, outcome, exit_)
        del self._running[job_id]

    def wind_up(self) -> None:
        """Stop all workers and wait until they have saved their work; their jobs continue after the next start."""
        own = {job_id: process for job_id, process in self._running.items() if isinstance(process, OwnProcess)}
        for process in own.values():
            process.stop()
        while any(process.poll() is None for process in own.values()):
            time.sleep(_POLL_S)
        for job_id in own:
            job, outcome = self._store.find(job_id), self._store.outcome(job_id)
            if job is None or (outcome is not None and outcome.kind == "finished"):
                continue  # stays `running`: the next start loads and settles it
            if outcome is None or outcome.kind == "stopped":
                self._requeue(job, "The server stopped; the job continues after its restart.")
            else:
                self._store.move(job_id, "failed", error=outcome.error)
        self._running.clear()

    def _start(self, job: Job) -> None:
        shortage = None if job.started is not None else disk_shortage(job.spec, self._store.path.parent)
        if shortage is not None:
            self._store.move(job.id, "failed", error=shortage)
            return
        self._store.move(job.id, "running")
        environment = worker_environment(os.environ, threads=job.spec.threads, cache_dir=job.spec.cache_dir)
        command = self._command(self._store.path, job.id)
        try:
            worker = OwnProcess(command, environment, log_path(self._store.path, job.id), grace_s=self._grace_s)
        except OSError as error:
            self._store.move(job.id, "failed", error=f"The job's process could not be started: {error}.")
            return
        self._running[job.id] = worker
        _log.info("job %s started", job.id)

    def _settle_unfinished(self, job: Job, outcome: Outcome | None, exit_: Exit) -> None:
        if outcome is not None and outcome.kind == "failed":
            _log.warning("job %s failed: %s", job.id, outcome.error)
            self._store.move(job.id, "failed", error=outcome.error)
        elif self._store.is_cancelled(job.id):
            _log.info("job %s was cancelled", job.id)
            self._store.move(job.id, "cancelled")
        elif outcome is not None:
            self._requeue(job, "The job was stopped and continues where it stopped.")
        elif exit_.status == EXIT_BUSY:
            self._requeue(job, "Another process still works on the job.")
        else:
            self._settle_death(job, exit_)

    def _settle_death(self, job: Job, exit_: Exit) -> None:
        num_deaths = self._store.count_death(job.id)
        _log.warning("the process of job %s %s; its output is in %s", job.id, exit_, log_path(self._store.path, job.id))
        if num_deaths < self._settings.max_attempts:
            self._requeue(job, f"The job's process {exit_}; the job continues from its last checkpoint.")
            return
        repeated = "" if num_deaths == 1 else f", {num_deaths} times in a row without progress"
        advice = _ADVICE.get(-exit_.status, _SHORT_MEMORY) if exit_.status is not None and exit_.status < 0 else ""
        self._store.move(job.id, "failed", error=f"The job's process {exit_}{repeated}. {advice}".rstrip())

    def _requeue(self, job: Job, message: str) -> None:
        self._store.move(job.id, "queued", message=message)

    def _loaded(self, job: Job, outcome: Outcome) -> Mapping[str, Any]:
        """Load the job's dictionaries if the request asked for it; return the result with the ids or the error."""
        result = dict(outcome.result or {})
        if not job.spec.load or self._store.is_cancelled(job.id):
            return result
        result["loaded"] = []
        for trained in result["dictionaries"]:
            try:
                self._load(trained["id"], trained["source"])
            except SteerserveError as error:
                return {**result, "load_error": error.message}
            except Exception as error:  # noqa: BLE001 the job itself has succeeded
                _log.exception("the result of job %s cannot be loaded", job.id)
                return {**result, "load_error": f"The dictionary {trained['id']!r} cannot be loaded: {error}"}
            result["loaded"].append(trained["id"])
        return result

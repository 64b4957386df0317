"""A supervisor over workers that count, and waiting for what they do.

Waiting ends at once if the process that is waited for has ended: the error gives its exit code and its log.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.core.config import JobSettings
from steerserve.jobs.job import ENDED, JobSpec
from steerserve.jobs.store import JobStore
from steerserve.jobs.supervisor import Supervisor
from steerserve.jobs.worker import log_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from steerserve.core.literals import JobState
    from steerserve.jobs.job import Job

DEADLINE_S = 120


def stand_in_command(store: Path, job_id: str) -> Sequence[str]:
    return [sys.executable, str(Path(__file__).with_name("stand_in.py")), str(store), job_id]


def until(condition: Callable[[], Any], end: Callable[[], str | None] = lambda: None) -> Any:  # noqa: ANN401
    """Wait until `condition` returns something true, and return that.

    `end` says how a process ended without which the condition cannot become true; None while it runs.
    """
    deadline = time.monotonic() + DEADLINE_S
    while True:
        ended = end()  # first: the process may have ended because the condition is true
        if value := condition():
            return value
        assert ended is None, ended
        assert time.monotonic() < deadline, f"the condition is still false after {DEADLINE_S} s"
        time.sleep(0.02)


def end_of_job(jobs: Supervisor | JobStore, job_id: str) -> str | None:
    """Say how a job ended with an error, or its worker with an exit code; None if neither has happened.

    A worker that a signal killed is the doing of a test, and is started again.
    """
    for event in jobs.events(job_id, after=0):
        reason = str(event.data.get("error") or event.data.get("message") or "")
        if event.type == "state" and (event.data["state"] == "failed" or "exit code" in reason):
            log = log_path(jobs.path if isinstance(jobs, JobStore) else jobs.store_path, job_id)
            output = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "(it has no log)"
            return f"{job_id}: {reason}\n{output}"
    return None


class Counting:
    """Starts and follows jobs that count, in one folder, over any number of supervisors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: list[tuple[str, str]] = []
        self.supervisors: list[Supervisor] = []

    def supervisor(self, *, max_running: int = 1, max_attempts: int = 3, start: bool = True) -> Supervisor:
        settings = JobSettings(max_running=max_running, max_attempts=max_attempts)
        supervisor = Supervisor(self.folder, settings, self.load, command=stand_in_command, grace_s=1.0)
        self.supervisors.append(supervisor)
        if start:
            supervisor.start()
        return supervisor

    def load(self, dictionary_id: str, source: str) -> None:
        self.loaded.append((dictionary_id, source))

    def spec(
        self, name: str, *, claims: tuple[str, ...] = (), load: bool = False, threads: int = 1, **values: object
    ) -> JobSpec:
        return JobSpec(
            claims=claims or (name,),
            options={"folder": str(self.folder / name), "steps": 3, **values},
            cache_dir=self.folder / "cache",
            threads=threads,
            load=load,
        )

    def until(self, condition: Callable[[], Any]) -> Any:  # noqa: ANN401 whatever the condition returns
        """Wait as `until` does, for a job of the newest supervisor."""
        supervisor = self.supervisors[-1]

        def end() -> str | None:
            ends = (end_of_job(supervisor, job.id) for job in supervisor.newest(10))
            return next((end for end in ends if end is not None), None)

        return until(condition, end)

    def wait_until_held(self, name: str, step: int) -> None:
        """Wait until the job's worker waits at a step."""
        self.until(lambda: self.is_held(name, step))

    def go(self, name: str) -> None:
        (self.folder / name / "go").touch()

    def starts(self, name: str) -> list[int]:
        """Return the counts from which the workers of a job began."""
        file = self.folder / name / "starts"
        return [int(line) for line in file.read_text(encoding="ascii").split()] if file.is_file() else []

    def is_held(self, name: str, step: int) -> bool:
        file = self.folder / name / "count"
        return file.is_file() and file.read_text(encoding="ascii") == str(step)


def wait_for(supervisor: Supervisor, job: Job, *states: JobState) -> Job:
    """Wait until a job is in one of the states, and return it; fail at once if it ends in another one."""

    def end() -> str | None:
        state = supervisor.find(job.id).state
        if state in ENDED and state not in states:
            return end_of_job(supervisor, job.id) or f"{job.id} is {state}"
        return None if "failed" in states else end_of_job(supervisor, job.id)

    until(lambda: supervisor.find(job.id).state in states, end)
    return supervisor.find(job.id)


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    jobs = Counting(tmp_path)
    yield jobs
    for supervisor in jobs.supervisors:
        supervisor.stop()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """Run real workers."""
    supervisor = Supervisor(tmp_path, JobSettings(), lambda *_: None)
    supervisor.start()
    yield supervisor
    supervisor.stop()


def write_model_and_text(folder: Path, *, num_documents: int, num_words: int) -> None:
    """Write the tiny model into `tiny`, and documents of random words into `text`."""
    from tests.tiny import tiny_llama_folder  # loads torch, which the stand-ins that import this file do without

    tiny_llama_folder(folder / "tiny")
    source = random.Random(0)
    (folder / "text").mkdir()
    for number in range(num_documents):
        words = " ".join("".join(source.choices("abcdefgh", k=4)) for _ in range(num_words))
        (folder / "text" / f"{number}.txt").write_text(words, encoding="utf-8")

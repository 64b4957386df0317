"""A supervisor over workers that count, and waiting for what they do."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.core.config import JobSettings
from steerserve.jobs.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from steerserve.core.literals import JobState
    from steerserve.jobs.job import Job

DEADLINE_S = 120


def stand_in_command(store: Path, job_id: str) -> Sequence[str]:
    return [sys.executable, str(Path(__file__).with_name("stand_in.py")), str(store), job_id]


def until(condition: Callable[[], Any]) -> Any:  # noqa: ANN401 whatever the condition gives
    """Wait until `condition` gives something true, and return it."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    return found


class Counting:
    """Starts and follows jobs that count, in one folder, over any number of supervisors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: list[tuple[str, str]] = []
        self.supervisors: list[Supervisor] = []

    def supervisor(self, *, max_running: int = 1, max_attempts: int = 3, start: bool = True) -> Supervisor:
        settings = JobSettings(max_running=max_running, max_attempts=max_attempts)
        made = Supervisor(self.folder, settings, self.load, command=stand_in_command, grace_s=1.0)
        self.supervisors.append(made)
        if start:
            made.start()
        return made

    def load(self, dictionary_id: str, source: str) -> None:
        self.loaded.append((dictionary_id, source))

    def spec(self, name: str, **values: Any) -> dict[str, Any]:  # noqa: ANN401 JSON
        common = {"claims": [name], "threads": 1, "cache_dir": str(self.folder / "cache"), "load": False}
        return {**common, "folder": str(self.folder / name), "steps": 3, **values}

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
    """Wait until a job is in one of the states, and return it."""
    until(lambda: supervisor.find(job.id).state in states)
    return supervisor.find(job.id)


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    made = Counting(tmp_path)
    yield made
    for supervisor in made.supervisors:
        supervisor.stop()

"""A job: what it is to do, and what happens to it. Knows neither where it is stored nor who works on it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.core.literals import JobEventType, JobKind, JobState

ENDED: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """All that a worker needs to know. The store keeps it as JSON; clients never see it."""

    claims: tuple[str, ...]
    """Ids of the dictionaries that the job writes. No other job may claim them before this one has ended."""
    options: Mapping[str, Any]
    """Options of the work as JSON: what `TrainOptions.to_json` or `InterpretOptions.to_json` returns."""
    cache_dir: Path
    """Folder that keeps fetched models."""
    threads: int
    """Number of threads that the worker computes with."""
    load: bool = False
    """Whether the server loads the dictionaries when the job is done."""
    disk_bytes: int = 0
    """Bytes that the job may fill on the disk of the dictionaries."""

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON, which `from_json` reads."""
        return {
            "claims": list(self.claims),
            "threads": self.threads,
            "cache_dir": str(self.cache_dir),
            "load": self.load,
            "disk_bytes": self.disk_bytes,
            "options": dict(self.options),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> JobSpec:
        """Read what `to_json` wrote."""
        return cls(**{**value, "claims": tuple(value["claims"]), "cache_dir": Path(value["cache_dir"])})


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work that a process of its own does beside serving."""

    id: str
    """Unique name that says what kind of job it is and which dictionary it works on."""
    kind: JobKind
    spec: JobSpec
    state: JobState = "queued"
    progress: Mapping[str, Any] = field(default_factory=dict)
    """The worker's latest report."""
    error: str | None = None
    result: Mapping[str, Any] | None = None
    created: float = field(default_factory=time.time)
    """Time of the request, in Unix seconds."""
    started: float | None = None
    """Time at which a worker first ran, in Unix seconds."""
    ended: float | None = None
    """Time at which the job ended, in Unix seconds."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self.state in ENDED

    def as_json(self) -> dict[str, Any]:
        """Return the job as clients see it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "state": self.state,
            "progress": dict(self.progress),
            "error": self.error,
            "result": None if self.result is None else dict(self.result),
            "created": int(self.created),
            "started": None if self.started is None else int(self.started),
            "ended": None if self.ended is None else int(self.ended),
        }


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that happened to a job."""

    job: str
    seq: int
    """Number of the event within the job, counting up; the numbers of dropped events are missing."""
    type: JobEventType
    time: float
    """Time of the event, in Unix seconds."""
    data: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the event as clients see it."""
        return {"seq": self.seq, "type": self.type, "job": self.job, "time": round(self.time, 3), **self.data}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a worker says that it ended; the supervisor derives the job's state from it."""

    kind: Literal["finished", "failed", "stopped"]
    error: str | None = None
    result: Mapping[str, Any] | None = None


def new_job_id(kind: JobKind, subject: str) -> str:
    """Return the id of a new job about the dictionary `subject`; the id fits into a URL and a file name."""
    return f"{kind}-{subject}-{secrets.token_hex(4)}"

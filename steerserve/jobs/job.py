"""A job and what happens to it, as frozen data. Knows neither where it is kept nor who works on it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.core.literals import JobEventType, JobKind, JobState

ENDED: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work that a process of its own does beside serving."""

    id: str
    """Names the kind and what it is about, for people; unique."""
    kind: JobKind
    spec: Mapping[str, Any]
    """All that its worker needs to know, as JSON; never shown to clients."""
    state: JobState = "queued"
    progress: Mapping[str, Any] = field(default_factory=dict)
    """What the worker told last."""
    error: str | None = None
    result: Mapping[str, Any] | None = None
    created: float = field(default_factory=time.time)
    """Unix time in seconds, as the two below."""
    started: float | None = None
    """When it ran first."""
    ended: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
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
    """Counts up within the job; numbers of events that were dropped are missing."""
    type: JobEventType
    time: float
    """Unix time in seconds."""
    data: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the event as clients see it."""
        return {"seq": self.seq, "type": self.type, "job": self.job, "time": round(self.time, 3), **self.data}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a worker says that it ended; the supervisor makes a state of it."""

    kind: Literal["finished", "failed", "stopped"]
    error: str | None = None
    result: Mapping[str, Any] | None = None


def new_job_id(kind: JobKind, subject: str) -> str:
    """Return the id of a new job about `subject`, which must fit into a URL and a file name."""
    return f"{kind}-{subject}-{secrets.token_hex(4)}"

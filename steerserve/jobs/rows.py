"""The tables of the job store, and how jobs and events are written into and read from their rows."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

from steerserve.jobs.job import Job, JobSpec

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from steerserve.core.literals import JobEventType

MAX_PROGRESS_EVENTS = 1000
"""Most progress events of one job. Above that every second one is dropped: the rest still spans the whole run."""
MAX_LOG_EVENTS = 500
"""Most log events of one job; the newest stay."""
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE jobs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL,
            state TEXT NOT NULL,
            spec TEXT NOT NULL,
            progress TEXT NOT NULL DEFAULT '{}',
            error TEXT,
            result TEXT,
            created REAL NOT NULL,
            started REAL,
            ended REAL,
            outcome TEXT,
            is_cancelled INTEGER NOT NULL DEFAULT 0,
            furthest TEXT NOT NULL DEFAULT '{}',
            furthest_at_death TEXT,
            num_deaths INTEGER NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX jobs_by_state ON jobs (state, number)",
        """CREATE TABLE events (
            job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            seq INTEGER NOT NULL,
            type TEXT NOT NULL,
            time REAL NOT NULL,
            data TEXT NOT NULL,
            PRIMARY KEY (job, seq)
        ) WITHOUT ROWID""",
    ),
)
"""The statements that lead from version N to N + 1 of the file (`PRAGMA user_version`)."""
JOB_COLUMNS = "id, kind, spec, state, progress, error, result, created, started, ended"


def insert_job(connection: sqlite3.Connection, job: Job) -> None:
    """Write a new job."""
    connection.execute(
        "INSERT INTO jobs (id, kind, state, spec, created) VALUES (?, ?, ?, ?, ?)",
        (job.id, job.kind, job.state, to_text(job.spec.to_json()), job.created),
    )


def read_job(row: tuple[Any, ...]) -> Job:
    """Return the job of a row with the `JOB_COLUMNS`."""
    job_id, kind, spec, state, progress, error, result, created, started, ended = row
    return Job(
        id=job_id,
        kind=kind,
        spec=JobSpec.from_json(json.loads(spec)),
        state=state,
        progress=json.loads(progress),
        error=error,
        result=None if result is None else json.loads(result),
        created=created,
        started=started,
        ended=ended,
    )


def append_event(connection: sqlite3.Connection, job_id: str, kind: JobEventType, data: Mapping[str, Any]) -> None:
    """Write the next event of a job, and drop events of the kind if there are too many."""
    connection.execute(
        "INSERT INTO events (job, seq, type, time, data) "
        "SELECT ?, coalesce(max(seq), 0) + 1, ?, ?, ? FROM events WHERE job = ?",
        (job_id, kind, time.time(), to_text(data), job_id),
    )
    limit = {"progress": MAX_PROGRESS_EVENTS, "log": MAX_LOG_EVENTS}.get(kind)
    if limit is None:
        return
    (count,) = connection.execute("SELECT count(*) FROM events WHERE job = ? AND type = ?", (job_id, kind)).fetchone()
    if count > limit:
        # Newest first, so that the newest, rank 1, always stays.
        is_dropped = "rank % 2 = 0" if kind == "progress" else f"rank > {limit}"
        connection.execute(
            "DELETE FROM events WHERE job = ? AND seq IN (SELECT seq FROM (SELECT seq, row_number() OVER "  # noqa: S608
            f"(ORDER BY seq DESC) AS rank FROM events WHERE job = ? AND type = ?) WHERE {is_dropped})",
            (job_id, job_id, kind),
        )


def to_text(value: object) -> str:
    """Return a value as JSON text; what JSON cannot hold is replaced."""
    return json.dumps(replace_invalid(value), allow_nan=False)


def replace_invalid(value: Any) -> Any:  # noqa: ANN401 JSON
    """Replace what JSON cannot hold: a number that is not finite, half of a surrogate pair (in a file's name)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, dict):
        return {replace_invalid(key): replace_invalid(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_invalid(inner) for inner in value]
    return value

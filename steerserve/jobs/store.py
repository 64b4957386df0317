"""Jobs and their events in one SQLite file, which the server and the workers write at the same time.

A worker writes progress, log lines and its outcome; states are the supervisor's alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError, UnavailableError
from steerserve.core.sqlite import closed_on_failure, connect, migrate, transaction
from steerserve.jobs.job import ENDED, Job, JobEvent, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Self

    from steerserve.core.literals import JobEventType, JobState

MAX_PROGRESS_EVENTS = 1000
"""Of one job. When there are more, every second one goes: what is left still spans the whole run."""
MAX_LOG_EVENTS = 500
"""Of one job; the newest stay."""
BUSY_S = 30.0
"""How long a write waits for another writer of the file, unless it is told otherwise."""
_RETRY_AFTER_S = 5
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
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
_COLUMNS = "id, kind, spec, state, progress, error, result, created, started, ended"


class JobStore:
    """The file. Any thread, several processes; every call is one short transaction.

    Each raises UnavailableError where the file cannot be read or written now.
    """

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        """Open the file, or make it. `busy_s` is how long a write waits for another writer.

        Raises:
            ConfigError: it cannot be used.
            UnavailableError: it cannot be used now: something else holds it, or it may not be written.
        """
        self.path = path
        self._is_closed = False
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        try:
            self._connection = connect(path, timeout_s=busy_s, check_same_thread=False)
            with closed_on_failure(self._connection):
                self._connection.execute("PRAGMA foreign_keys = ON")
                if self._connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                    self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")
                migrate(self._connection, _MIGRATIONS)
                # One of its own: who reads does not wait for a write, which may wait for another process.
                self._reader = connect(path, timeout_s=busy_s, check_same_thread=False)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.OperationalError as error:
            raise _unavailable(error) from error
        except sqlite3.Error as error:
            message = (
                f"The jobs in {path} cannot be read: {error}. Move the file away, or put another folder first in "
                "dictionary_dirs."
            )
            raise ConfigError(message) from error

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        with self._lock, self._reading:
            self._is_closed = True
            self._connection.close()
            self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, job: Job) -> None:
        """Write a new job at the end of the queue."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO jobs (id, kind, state, spec, created) VALUES (?, ?, ?, ?, ?)",
                (job.id, job.kind, job.state, _dump(job.spec), job.created),
            )
            _append(connection, job.id, "state", {"state": job.state})

    def find(self, job_id: str) -> Job | None:
        """Return one job."""
        rows = self._query(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", job_id)  # noqa: S608 a constant
        return _job(rows[0]) if rows else None

    def newest(self, limit: int, state: JobState | None = None) -> list[Job]:
        """Return up to `limit` jobs, of one state or any, the newest first."""
        condition = "WHERE state = ?" if state is not None else ""
        rows = self._query(
            f"SELECT {_COLUMNS} FROM jobs {condition} ORDER BY number DESC LIMIT ?",  # noqa: S608 constants
            *([state] if state is not None else []),
            limit,
        )
        return [_job(row) for row in rows]

    def in_state(self, *states: JobState) -> list[Job]:
        """Return all jobs of these states, in order of creation."""
        marks = ", ".join("?" for _ in states)
        query = f"SELECT {_COLUMNS} FROM jobs WHERE state IN ({marks}) ORDER BY number"  # noqa: S608 constants
        return [_job(row) for row in self._query(query, *states)]

    def events(self, job_id: str, *, after: int = 0, limit: int = 500) -> list[JobEvent]:
        """Return up to `limit` events of a job with a number over `after`, in order."""
        query = "SELECT job, seq, type, time, data FROM events WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?"
        rows = self._query(query, job_id, after, limit)
        return [JobEvent(job, seq, kind, moment, json.loads(data)) for job, seq, kind, moment, data in rows]

    def move(
        self,
        job_id: str,
        state: JobState,
        *,
        message: str | None = None,
        error: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        """Give a job that has not ended another state, and say so in its events.

        Args:
            job_id: The job.
            state: What it becomes.
            message: Why, where the state alone does not say it.
            error: For `failed`: what clients are told.
            result: For `done`: what came out.
        """
        now = time.time()
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = ?, error = ?, result = ?, outcome = NULL, started = coalesce(started, ?), "
                "ended = ? WHERE id = ? AND ended IS NULL",
                (
                    state,
                    None if error is None else _clean(error),
                    None if result is None else _dump(result),
                    now if state == "running" else None,
                    now if state in ENDED else None,
                    job_id,
                ),
            )
            if changed.rowcount:
                told = {"message": message, "error": error, "result": result}
                said = {name: value for name, value in told.items() if value is not None}
                _append(connection, job_id, "state", {"state": state, **said})

    def record_progress(self, job_id: str, progress: Mapping[str, Any], furthest: Mapping[str, int]) -> None:
        """Keep what a worker told last, and `furthest`: how far each stage ever came."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET progress = ?, furthest = ? WHERE id = ?", (_dump(progress), _dump(furthest), job_id)
            )
            _append(connection, job_id, "progress", progress)

    def record_log(self, job_id: str, level: str, message: str) -> None:
        """Keep one line for whoever follows the job."""
        with self._transaction() as connection:
            _append(connection, job_id, "log", {"level": level, "message": message})

    def record_outcome(self, job_id: str, outcome: Outcome) -> None:
        """Keep how the worker ended, the first time that it is told."""
        told = {"kind": outcome.kind, "error": outcome.error, "result": outcome.result}
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET outcome = ? WHERE id = ? AND outcome IS NULL", (_dump(told), job_id))

    def outcome(self, job_id: str) -> Outcome | None:
        """Return how the worker ended; None while it works, and where it died."""
        rows = self._query("SELECT outcome FROM jobs WHERE id = ? AND outcome IS NOT NULL", job_id)
        return Outcome(**json.loads(rows[0][0])) if rows else None

    def furthest(self, job_id: str) -> dict[str, int]:
        """Return how far each stage ever came."""
        rows = self._query("SELECT furthest FROM jobs WHERE id = ?", job_id)
        return dict(json.loads(rows[0][0])) if rows else {}

    def mark_cancelled(self, job_id: str) -> None:
        """Remember that a running job is not wanted any more."""
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET is_cancelled = 1 WHERE id = ?", (job_id,))

    def is_cancelled(self, job_id: str) -> bool:
        """Tell whether a job is not wanted any more."""
        return bool(self._query("SELECT 1 FROM jobs WHERE id = ? AND is_cancelled", job_id))

    def count_death(self, job_id: str) -> int:
        """Count that the worker died; returns how often it did without having come further in between."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET num_deaths = CASE WHEN furthest IS furthest_at_death THEN num_deaths + 1 ELSE 1 END, "
                "furthest_at_death = furthest WHERE id = ?",
                (job_id,),
            )
            (count,) = connection.execute("SELECT num_deaths FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return int(count)

    def prune(self, keep: int) -> list[str]:
        """Forget ended jobs but for the newest `keep`, and return their ids."""
        marks = ", ".join("?" for _ in ENDED)
        query = f"SELECT id FROM jobs WHERE state IN ({marks}) ORDER BY number DESC LIMIT -1 OFFSET ?"  # noqa: S608
        with self._transaction() as connection:
            ids = [row[0] for row in connection.execute(query, (*ENDED, keep))]
            connection.executemany("DELETE FROM jobs WHERE id = ?", [(job_id,) for job_id in ids])
        return ids

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock of the file from the first statement to the last.

        Raises:
            UnavailableError: something else holds it, or the file cannot be written.
        """
        with self._lock:
            self._check_open()
            try:
                with transaction(self._connection):
                    yield self._connection
            except sqlite3.OperationalError as error:
                raise _unavailable(error) from error

    def _query(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._reading:
            self._check_open()
            try:
                return self._reader.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                raise _unavailable(error) from error

    def _check_open(self) -> None:
        if self._is_closed:
            message = "The server is stopping. Try again when it is back."
            raise UnavailableError(message, retry_after_s=_RETRY_AFTER_S)


def _unavailable(error: sqlite3.OperationalError) -> UnavailableError:
    message = f"The jobs cannot be read or written now: {error}. Try again in a few seconds."
    return UnavailableError(message, retry_after_s=_RETRY_AFTER_S)


def _append(connection: sqlite3.Connection, job_id: str, kind: JobEventType, data: Mapping[str, Any]) -> None:
    connection.execute(
        "INSERT INTO events (job, seq, type, time, data) "
        "SELECT ?, coalesce(max(seq), 0) + 1, ?, ?, ? FROM events WHERE job = ?",
        (job_id, kind, time.time(), _dump(data), job_id),
    )
    limit = {"progress": MAX_PROGRESS_EVENTS, "log": MAX_LOG_EVENTS}.get(kind)
    if limit is None:
        return
    (count,) = connection.execute("SELECT count(*) FROM events WHERE job = ? AND type = ?", (job_id, kind)).fetchone()
    if count > limit:
        # Newest first, so that the newest, number 1, always stays.
        dropped = "place % 2 = 0" if kind == "progress" else f"place > {limit}"
        connection.execute(
            "DELETE FROM events WHERE job = ? AND seq IN (SELECT seq FROM (SELECT seq, row_number() OVER "  # noqa: S608
            f"(ORDER BY seq DESC) AS place FROM events WHERE job = ? AND type = ?) WHERE {dropped})",
            (job_id, job_id, kind),
        )


def _job(row: tuple[Any, ...]) -> Job:
    job_id, kind, spec, state, progress, error, result, created, started, ended = row
    return Job(
        id=job_id,
        kind=kind,
        spec=json.loads(spec),
        state=state,
        progress=json.loads(progress),
        error=error,
        result=None if result is None else json.loads(result),
        created=created,
        started=started,
        ended=ended,
    )


def _dump(value: object) -> str:
    return json.dumps(_clean(value), allow_nan=False)


def _clean(value: Any) -> Any:  # noqa: ANN401 JSON
    """Replace what no JSON can hold: a number that is not finite, half of a surrogate pair (from a file's name)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return value

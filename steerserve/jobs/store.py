"""Jobs and their events in one SQLite file, which the server and the workers write at the same time.

A worker writes progress, log lines and its outcome; only the supervisor changes states.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError, UnavailableError
from steerserve.core.sqlite import closed_on_failure, connect, migrate, transaction
from steerserve.jobs.job import ENDED, JobEvent, Outcome
from steerserve.jobs.rows import (
    JOB_COLUMNS,
    MIGRATIONS,
    append_event,
    insert_job,
    read_job,
    replace_invalid,
    to_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Self

    from steerserve.core.literals import JobState
    from steerserve.jobs.job import Job

BUSY_S = 30.0
"""Default time that a write waits for another writer of the file."""
_RETRY_AFTER_S = 5


class JobStore:
    """The file with the jobs. Any thread, several processes; every call is one short transaction.

    Each method raises UnavailableError if the file cannot be read or written now.
    """

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        """Open the file, or create it. A write waits `busy_s` for another writer.

        Raises:
            ConfigError: the file cannot be used.
            UnavailableError: the file cannot be used now: another process locks it, or it is write-protected.
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
                migrate(self._connection, MIGRATIONS)
                # A connection for reading: a read never waits for a write, which may wait for another process.
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
            insert_job(connection, job)
            append_event(connection, job.id, "state", {"state": job.state})

    def find(self, job_id: str) -> Job | None:
        """Return the job of this id; None if no job has it."""
        rows = self._query(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", job_id)  # noqa: S608 a constant
        return read_job(rows[0]) if rows else None

    def newest(self, limit: int, state: JobState | None = None) -> list[Job]:
        """Return up to `limit` jobs in one state or in any, the newest first."""
        condition = "WHERE state = ?" if state is not None else ""
        rows = self._query(
            f"SELECT {JOB_COLUMNS} FROM jobs {condition} ORDER BY number DESC LIMIT ?",  # noqa: S608 constants
            *([state] if state is not None else []),
            limit,
        )
        return [read_job(row) for row in rows]

    def in_state(self, *states: JobState) -> list[Job]:
        """Return all jobs in these states, in order of creation."""
        marks = ", ".join("?" for _ in states)
        query = f"SELECT {JOB_COLUMNS} FROM jobs WHERE state IN ({marks}) ORDER BY number"  # noqa: S608 constants
        return [read_job(row) for row in self._query(query, *states)]

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
        """Change the state of a job that has not ended, and write an event about it.

        Args:
            job_id: The job.
            state: The new state.
            message: The reason, if the state alone does not say it.
            error: For `failed`: the error that clients see.
            result: For `done`: the result of the job.
        """
        now = time.time()
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = ?, error = ?, result = ?, outcome = NULL, started = coalesce(started, ?), "
                "ended = ? WHERE id = ? AND ended IS NULL",
                (
                    state,
                    None if error is None else replace_invalid(error),
                    None if result is None else to_text(result),
                    now if state == "running" else None,
                    now if state in ENDED else None,
                    job_id,
                ),
            )
            if changed.rowcount:
                details = {"message": message, "error": error, "result": result}
                given = {name: value for name, value in details.items() if value is not None}
                append_event(connection, job_id, "state", {"state": state, **given})

    def record_progress(self, job_id: str, progress: Mapping[str, Any], furthest: Mapping[str, int]) -> None:
        """Store a worker's latest report, and in `furthest` the most that was ever done in each stage."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET progress = ?, furthest = ? WHERE id = ?",
                (to_text(progress), to_text(furthest), job_id),
            )
            append_event(connection, job_id, "progress", progress)

    def record_log(self, job_id: str, level: str, message: str) -> None:
        """Store a log line as an event."""
        with self._transaction() as connection:
            append_event(connection, job_id, "log", {"level": level, "message": message})

    def record_outcome(self, job_id: str, outcome: Outcome) -> None:
        """Store how the worker ended; only the first outcome counts."""
        value = {"kind": outcome.kind, "error": outcome.error, "result": outcome.result}
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET outcome = ? WHERE id = ? AND outcome IS NULL", (to_text(value), job_id))

    def outcome(self, job_id: str) -> Outcome | None:
        """Return how the worker ended; None if it still works, or died."""
        rows = self._query("SELECT outcome FROM jobs WHERE id = ? AND outcome IS NOT NULL", job_id)
        return Outcome(**json.loads(rows[0][0])) if rows else None

    def furthest(self, job_id: str) -> dict[str, int]:
        """Return the most that was ever done in each stage."""
        rows = self._query("SELECT furthest FROM jobs WHERE id = ?", job_id)
        return dict(json.loads(rows[0][0])) if rows else {}

    def mark_cancelled(self, job_id: str) -> None:
        """Store that the cancellation of a running job was requested."""
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET is_cancelled = 1 WHERE id = ?", (job_id,))

    def is_cancelled(self, job_id: str) -> bool:
        """Tell whether the cancellation of a job was requested."""
        return bool(self._query("SELECT 1 FROM jobs WHERE id = ? AND is_cancelled", job_id))

    def count_death(self, job_id: str) -> int:
        """Count a death of the worker; return the number of deaths since the run last made progress."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET num_deaths = CASE WHEN furthest IS furthest_at_death THEN num_deaths + 1 ELSE 1 END, "
                "furthest_at_death = furthest WHERE id = ?",
                (job_id,),
            )
            (count,) = connection.execute("SELECT num_deaths FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return int(count)

    def prune(self, keep: int) -> list[str]:
        """Delete ended jobs except the newest `keep`; return the deleted ids."""
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
            UnavailableError: another process holds it, or the file cannot be written.
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
            message = "The server is stopping. Try again after its restart."
            raise UnavailableError(message, retry_after_s=_RETRY_AFTER_S)


def _unavailable(error: sqlite3.OperationalError) -> UnavailableError:
    message = f"The jobs cannot be read or written now: {error}. Try again in a few seconds."
    return UnavailableError(message, retry_after_s=_RETRY_AFTER_S)

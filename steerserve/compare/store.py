"""Kept comparisons: one SQLite file, from which the oldest are dropped beyond a number and a size.

Any thread but that of an event loop, and several processes, may use it: every call opens the file for itself and is one
transaction, so kept comparisons survive any crash of the process. The first comparison creates the file.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import NotFoundError, UnavailableError
from steerserve.core.sqlite import connect, known_version, migrate, transaction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FOLDER = ".comparisons"
MAX_KEPT = 1000
MAX_BYTES = 256 * 1024 * 1024
"""Largest size of all kept comparisons together, as JSON."""
MAX_ONE_BYTES = 64 * 1024 * 1024
"""Largest size of one comparison; a larger one is not kept, since it would push out too many others."""
_BUSY_S = 10.0
_RETRY_AFTER_S = 5
_MIGRATIONS = (
    (
        """CREATE TABLE comparisons (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            summary TEXT NOT NULL,
            content TEXT NOT NULL,
            num_bytes INTEGER NOT NULL
        )""",
    ),
)
"""The steps that lead from version N of the file to N + 1."""


@dataclass(frozen=True, slots=True)
class KeptPage:
    """Summaries of some comparisons, newest first."""

    summaries: list[dict[str, Any]]
    has_more: bool


class ComparisonStore:
    """The file of kept comparisons. Every method raises UnavailableError if the file cannot be read or written now."""

    def __init__(self, folder: Path, *, max_kept: int = MAX_KEPT, max_bytes: int = MAX_BYTES) -> None:
        """Keep at most `max_kept` comparisons, of at most `max_bytes` together, in `folder`."""
        self.path = folder.absolute() / "comparisons.sqlite3"
        self._max_kept = max_kept
        self._max_bytes = max_bytes

    def add(self, comparison_id: str, summary: Mapping[str, Any], content: str) -> bool:
        """Keep a comparison and drop the oldest ones beyond the limits; return false if it is too large to be kept.

        Args:
            comparison_id: The new comparison's id.
            summary: What lists show of the comparison.
            content: The whole comparison, as JSON.
        """
        listed = json.dumps(summary)
        num_bytes = len(content.encode()) + len(listed)
        if num_bytes > min(MAX_ONE_BYTES, self._max_bytes):
            return False
        with self._opened(creates=True) as connection, transaction(connection):
            connection.execute(
                "INSERT INTO comparisons (id, summary, content, num_bytes) VALUES (?, ?, ?, ?)",
                (comparison_id, listed, content, num_bytes),
            )
            connection.execute(
                "DELETE FROM comparisons WHERE number IN (SELECT number FROM (SELECT number, "
                "row_number() OVER newest AS rank, sum(num_bytes) OVER newest AS size FROM comparisons "
                "WINDOW newest AS (ORDER BY number DESC)) WHERE rank > ? OR size > ?)",
                (self._max_kept, self._max_bytes),
            )
        return True

    def page(self, *, limit: int, offset: int) -> KeptPage:
        """Return the summaries of `limit` comparisons, newest first, after skipping `offset`."""
        with self._opened() as connection:
            rows = connection.execute(
                "SELECT summary FROM comparisons ORDER BY number DESC LIMIT ? OFFSET ?", (limit + 1, offset)
            ).fetchall()
        return KeptPage([json.loads(summary) for (summary,) in rows[:limit]], len(rows) > limit)

    def find(self, comparison_id: str) -> str:
        """Return a kept comparison as JSON.

        Raises:
            NotFoundError: no comparison has that id.
        """
        with self._opened() as connection:
            row = connection.execute("SELECT content FROM comparisons WHERE id = ?", (comparison_id,)).fetchone()
        if row is None:
            raise _unknown(comparison_id)
        return str(row[0])

    def delete(self, comparison_id: str) -> None:
        """Delete a comparison.

        Raises:
            NotFoundError: no comparison has that id.
        """
        with self._opened() as connection:
            deleted = connection.execute("DELETE FROM comparisons WHERE id = ?", (comparison_id,)).rowcount
        if not deleted:
            raise _unknown(comparison_id)

    @contextlib.contextmanager
    def _opened(self, *, creates: bool = False) -> Iterator[sqlite3.Connection]:
        """Open the file; one that does not exist yet reads as an empty one."""
        try:
            if creates:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            is_empty = not creates and not self.path.exists()
            with contextlib.closing(
                sqlite3.connect(":memory:", isolation_level=None) if is_empty else connect(self.path, timeout_s=_BUSY_S)
            ) as connection:
                connection.execute("PRAGMA synchronous = NORMAL")
                if known_version(connection, _MIGRATIONS) == 0:
                    connection.execute("PRAGMA auto_vacuum = FULL")  # only before there is a table
                    connection.execute("PRAGMA journal_mode = WAL")
                migrate(connection, _MIGRATIONS)
                yield connection
        except (sqlite3.Error, OSError) as error:
            message = (
                f"The kept comparisons in {self.path} cannot be read or written now: {error}. Try again in a few "
                "seconds; if that does not help, move the file away."
            )
            raise UnavailableError(message, retry_after_s=_RETRY_AFTER_S) from error


def _unknown(comparison_id: str) -> NotFoundError:
    message = (
        f"There is no comparison {comparison_id[:100]!r}. GET /v1/comparisons lists the kept ones; the oldest are "
        "dropped when there are too many."
    )
    return NotFoundError(message, param="comparison_id", code="comparison_not_found")

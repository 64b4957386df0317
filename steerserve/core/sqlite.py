"""SQLite files: how they are opened, written in transactions, and brought to the newest version. Knows no tables."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Step = str | Callable[[sqlite3.Connection], None]
    """A statement, or a function that changes the file."""
    Migrations = Sequence[Sequence[Step]]
    """The steps that lead from version N of a file to N + 1 (`PRAGMA user_version`)."""

OpenMode = Literal["ro", "rw", "rwc"]
"""Read only; read and write an existing file; the same, and create the file if it does not exist."""


class NewerVersionError(sqlite3.DatabaseError):
    """The file was written by a newer steerserve."""


def connect(
    path: Path, *, mode: OpenMode = "rwc", timeout_s: float, check_same_thread: bool = True
) -> sqlite3.Connection:
    """Open a file. Transactions are begun with `transaction`: the module's own begin without the write lock.

    Args:
        path: The file.
        mode: What the connection may do.
        timeout_s: How long a statement waits for a lock that another connection holds.
        check_same_thread: Whether only this thread may use the connection.
    """
    address = f"file:{quote(str(path.absolute()))}?mode={mode}"
    connection = sqlite3.connect(
        address, timeout=timeout_s, isolation_level=None, uri=True, check_same_thread=check_same_thread
    )
    with closed_on_failure(connection):
        connection.execute("PRAGMA trusted_schema = OFF")
    return connection


@contextlib.contextmanager
def closed_on_failure(connection: sqlite3.Connection) -> Iterator[None]:
    """Close the connection if the block raises."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Hold the file's write lock during the block; commit at its end, and roll everything back if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise


def known_version(connection: sqlite3.Connection, migrations: Migrations) -> int:
    """Return the version of a file's tables; 0 for a new file.

    Raises:
        NewerVersionError: it is newer than the last migration leads to.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        message = f"a newer steerserve wrote it (version {version}; this one reads up to {len(migrations)})"
        raise NewerVersionError(message)
    return int(version)


def migrate(connection: sqlite3.Connection, migrations: Migrations) -> None:
    """Bring a file to the newest version, completely or not at all; takes the write lock only if there is work.

    Raises:
        NewerVersionError: the file has a version that this program does not know.
    """
    if known_version(connection, migrations) == len(migrations):
        return
    with transaction(connection):
        version = known_version(connection, migrations)  # another process may have been faster
        for step in itertools.chain.from_iterable(migrations[version:]):
            if isinstance(step, str):
                connection.execute(step)
            else:
                step(connection)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")

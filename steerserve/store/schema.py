"""The SQLite file of a feature store: its tables, their versions, and how it is opened.

The journal is SQLite's rollback journal, not a WAL: the file alone is the store, it can be read in a folder that
nobody may write, and another file can be moved over it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from steerserve.core.errors import FeatureStoreError
from steerserve.core.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APPLICATION_ID = 0x53534653
"""Says that a file is a feature store (`PRAGMA application_id`): SSFS."""
_PAGE_BYTES = 16384
"""Several features to a page: with the usual 4,096 half a page is lost on most of them."""
BUSY_S = 30.0
"""How long to wait for others."""
GLANCE_S = 0.05
"""The longest that an event loop waits for a file."""
_POLL_S = 0.01
_PASSING = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT),
        *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH),
    }
)
"""Codes that tell of the machine, and not of what is in the file."""
_TOKENS = "tokenize = 'porter unicode61 remove_diacritics 2'"
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        # A row for every feature that anything is known of; the first three figures come from a harvest.
        """CREATE TABLE features (
            feature INTEGER PRIMARY KEY,
            num_active INTEGER,
            maximum REAL,
            mean REAL,
            dose REAL,
            output_score REAL
        )""",
        # What lists show of a feature, and the rest: see `Details.split`.
        "CREATE TABLE heads (feature INTEGER PRIMARY KEY, content BLOB NOT NULL)",
        "CREATE TABLE details (feature INTEGER PRIMARY KEY, content BLOB NOT NULL)",
        "CREATE TABLE tokens (number INTEGER PRIMARY KEY, token_id INTEGER NOT NULL, bytes BLOB NOT NULL)",
        """CREATE TABLE labels (
            number INTEGER PRIMARY KEY,
            feature INTEGER NOT NULL,
            text TEXT NOT NULL,
            origin TEXT NOT NULL,
            score REAL,
            created REAL NOT NULL,
            author TEXT,
            is_current INTEGER NOT NULL,
            is_best INTEGER NOT NULL
        )""",
        "CREATE INDEX labels_by_feature ON labels (feature)",
        "CREATE UNIQUE INDEX best_labels ON labels (feature) WHERE is_best",
        f"CREATE VIRTUAL TABLE label_index USING fts5(label, {_TOKENS})",
        # What is near the peaks and what is promoted is searched with word counts; whole snippets only for whether a
        # word is there at all, for positions would cost more than all the rest.
        f"CREATE VIRTUAL TABLE peak_index USING fts5(tokens, peaks, content = '', {_TOKENS})",
        f"CREATE VIRTUAL TABLE text_index USING fts5(text, content = '', detail = none, columnsize = 0, {_TOKENS})",
    ),
)
"""The statements that lead from version N to N + 1 of the file (`PRAGMA user_version`)."""


class StoreUnreachableError(FeatureStoreError):
    """A store cannot be used now, for a reason that may pass: the file itself may be sound."""


@contextlib.contextmanager
def reading(path: Path, *, timeout_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
    """Open a store for reading alone; the whole block sees it as it is at the first statement.

    Raises:
        FeatureStoreError: it cannot be read.
    """
    with told(path), contextlib.closing(_begin_reading(path, timeout_s)) as connection:
        yield connection


@contextlib.contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock of a store from the first statement to the last; what fails changes nothing.

    Raises:
        FeatureStoreError: it cannot be written.
    """
    # SQLite knows a journal by its name. Whoever still had the file that was here before would take the journal of the
    # one that is here now for a crash's, and remove it; so writers, and who moves a file here, take turns outside it.
    with told(path), turn(path), contextlib.closing(_connect(path, "rw", BUSY_S)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Tell what SQLite and the file system say as an error of ours."""
    try:
        yield
    except OSError as error:
        raise StoreUnreachableError(f"The feature store {path} cannot be used: {error}.") from error
    except sqlite3.OperationalError as error:  # the file is not known to be unsound
        kind = StoreUnreachableError if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING else FeatureStoreError
        raise kind(f"The feature store {path} cannot be used: {error}.") from error
    except sqlite3.Error as error:
        raise unusable(path, str(error)) from error


def unusable(path: Path, reason: str) -> FeatureStoreError:
    """Return the error that says why what is in a file is no use."""
    message = f"The feature store {path} cannot be used: {reason}. Move it away and interpret the dictionary again."
    return FeatureStoreError(message)


@contextlib.contextmanager
def make_file(path: Path) -> Iterator[sqlite3.Connection]:
    """Make a store without features; whatever the block writes is in it from the first moment on.

    Raises:
        FeatureStoreError: it cannot be made.
    """
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_connect(path, "rwc", BUSY_S)) as connection:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _apply_migrations(connection, 0)
            yield connection
            connection.execute("COMMIT")


def copy_file(source: Path, target: Path) -> None:
    """Copy a store as it is at this moment, whoever writes to it, into a file that is not there yet.

    Raises:
        FeatureStoreError: it cannot be read, or the copy cannot be written.
    """
    with reading(source) as connection, told(target), contextlib.closing(_connect(target, "rwc", BUSY_S)) as copy:
        connection.backup(copy)


def check_file(path: Path, *, timeout_s: float = BUSY_S) -> None:
    """Check that a file is a store, and bring one of an older version up to date.

    Raises:
        FeatureStoreError: it is something else, damaged, of a newer version, or of an older one and may not be written.
    """
    with reading(path, timeout_s=timeout_s) as connection:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise unusable(path, "it is no feature store")
    if version > len(MIGRATIONS):
        raise unusable(path, "a newer steerserve wrote it; update this one")
    if version < len(MIGRATIONS):
        if timeout_s < BUSY_S:
            raise StoreUnreachableError(f"The feature store {path} is of an older version, and there is no time now.")
        with writing(path) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            _apply_migrations(connection, version)


def compact(path: Path) -> None:
    """Leave no room unused in a file that is written no more."""
    with told(path), contextlib.closing(_connect(path, "rw", BUSY_S)) as connection:
        for index in ("label_index", "peak_index", "text_index"):
            connection.execute(f"INSERT INTO {index} ({index}) VALUES ('optimize')")  # noqa: S608 constants
        connection.execute("ANALYZE")
        connection.execute("VACUUM")


def _apply_migrations(connection: sqlite3.Connection, version: int) -> None:
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _begin_reading(path: Path, timeout_s: float) -> sqlite3.Connection:
    """Open a store and take hold of the state it is in now; once more where another file was moved here meanwhile.

    What somebody left who was killed while writing is undone first, which takes a connection that may write.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        place = _inode(path)
        connection = _connect(path, "ro", timeout_s)
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            if _inode(path) != place:
                continue
            # What a connection that may not write is told where somebody died while writing.
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            if not _undo(path) and time.monotonic() > deadline:
                raise
            continue
        return connection


def _undo(path: Path) -> bool:
    """Take back what a writer left half done that was killed; returns whether it is, and not another writer's turn.

    Raises:
        StoreUnreachableError: the file or its folder may not be written.
    """
    try:
        with FileLock(turn_file(path)) as lock:
            if not lock.acquire():  # that one takes it back, or writes it now
                time.sleep(_POLL_S)
                return False
            with contextlib.closing(_connect(path, "rw", 0)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                return True
    except (sqlite3.OperationalError, OSError) as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            time.sleep(_POLL_S)
            return False
        message = (
            f"The feature store {path} was left in the middle of a change by a process that was killed. Undoing that "
            f"takes leave to write it and its folder, which is not there: {error}. Read it once as somebody who has it."
        )
        raise StoreUnreachableError(message) from error


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait for the other writers of a store, in whatever process; a killed one waits no more.

    Raises:
        FeatureStoreError: none of them came to an end.
    """
    with FileLock(turn_file(path)) as lock:
        if not lock.acquire_within(BUSY_S):
            message = f"The feature store {path} cannot be used: others have been writing to it for {BUSY_S:g} s."
            raise StoreUnreachableError(message)
        yield


def turn_file(path: Path) -> Path:
    """Return the empty file whose lock says that somebody writes to the store at `path`."""
    return path.with_name(f".{path.name}.lock")


def _connect(path: Path, mode: str, timeout_s: float) -> sqlite3.Connection:
    # Transactions are begun by hand: the module's own begin without the write lock, and fail in the middle.
    address = f"file:{quote(str(path.absolute()))}?mode={mode}"
    connection = sqlite3.connect(address, timeout=timeout_s, isolation_level=None, uri=True)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection

"""The SQLite file of a feature store: its tables, their versions, and how it is opened.

The journal is SQLite's rollback journal, not a WAL: one file is the whole store, it can be read in a folder that nobody
may write, and another file can be moved over it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING

from steerserve.core.errors import FeatureStoreError
from steerserve.core.lock import FileLock
from steerserve.core.sqlite import NewerVersionError, connect, known_version, migrate, transaction
from steerserve.store.details_v1 import repack_details

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from steerserve.core.sqlite import Migrations

APPLICATION_ID = 0x53534653
"""`PRAGMA application_id` of a feature store: the letters SSFS."""
BUSY_S = 30.0
"""Seconds to wait for other processes that use the file."""
GLANCE_S = 0.05
"""Longest time in seconds that an event loop waits for a file."""
_PAGE_BYTES = 16384
"""Several features fit into a page; with SQLite's default of 4,096, half a page is lost on most features."""
_POLL_S = 0.01
_TRANSIENT = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT),
        *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH),
    }
)
"""Error codes that are about the machine and not about the contents of the file."""
_TOKENIZER = "tokenize = 'porter unicode61 remove_diacritics 2'"
MIGRATIONS: Migrations = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        # One row for each feature with a record, a calibration or a label; NULL is what is missing of these.
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
        f"CREATE VIRTUAL TABLE label_index USING fts5(label, {_TOKENIZER})",
        # Words near the peaks and promoted tokens are searched with word counts. Whole snippets only tell whether they
        # contain a word: positions would take more room than everything else.
        f"CREATE VIRTUAL TABLE peak_index USING fts5(tokens, peaks, content = '', {_TOKENIZER})",
        f"CREATE VIRTUAL TABLE text_index USING fts5(text, content = '', detail = none, columnsize = 0, {_TOKENIZER})",
    ),
    (repack_details,),
)


class StoreUnreachableError(FeatureStoreError):
    """A store cannot be used now, for a reason that may pass: the file itself may be sound."""


@contextlib.contextmanager
def reading(path: Path, *, timeout_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
    """Open a store read only; the whole block sees the file as it is when the block begins.

    Raises:
        FeatureStoreError: the file cannot be read.
    """
    with translated_errors(path), contextlib.closing(_begin_reading(path, timeout_s)) as connection:
        yield connection


@contextlib.contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock of a store during the block; a block that raises changes nothing.

    Raises:
        FeatureStoreError: the file cannot be written.
    """
    # SQLite finds a journal by its name. A process that still has the previous file of this name open would take the
    # journal of the present file for that of a crash, and delete it. So writers, and processes that move a file here,
    # exclude each other by a lock outside SQLite.
    with (
        translated_errors(path),
        write_lock(path),
        contextlib.closing(connect(path, mode="rw", timeout_s=BUSY_S)) as connection,
        transaction(connection),
    ):
        yield connection


@contextlib.contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Raise errors of SQLite and the file system as a FeatureStoreError."""
    try:
        yield
    except OSError as error:
        raise StoreUnreachableError(f"The feature store {path} cannot be used: {error}.") from error
    except sqlite3.OperationalError as error:  # the file is not known to be unsound
        is_transient = getattr(error, "sqlite_errorcode", 0) & 0xFF in _TRANSIENT
        kind = StoreUnreachableError if is_transient else FeatureStoreError
        raise kind(f"The feature store {path} cannot be used: {error}.") from error
    except NewerVersionError as error:
        raise FeatureStoreError(f"The feature store {path} cannot be used: {error}. Update steerserve.") from error
    except sqlite3.Error as error:
        raise unusable(path, str(error)) from error


def unusable(path: Path, reason: str) -> FeatureStoreError:
    """Return the error for a file whose contents cannot be used."""
    message = f"The feature store {path} cannot be used: {reason}. Move it away and interpret the dictionary again."
    return FeatureStoreError(message)


@contextlib.contextmanager
def create_file(path: Path) -> Iterator[sqlite3.Connection]:
    """Create a store without features, in a file that nobody reads yet; the block writes what it describes.

    Raises:
        FeatureStoreError: the file cannot be created.
    """
    with translated_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(connect(path, timeout_s=BUSY_S)) as connection:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            migrate(connection, MIGRATIONS)
            with transaction(connection):
                yield connection


def copy_file(source: Path, target: Path) -> None:
    """Copy a store to a file that does not exist yet; the copy is consistent also while others write the store.

    Raises:
        FeatureStoreError: the store cannot be read, or the copy cannot be written.
    """
    with (
        reading(source) as connection,
        translated_errors(target),
        contextlib.closing(connect(target, timeout_s=BUSY_S)) as copy,
    ):
        connection.backup(copy)


def check_file(path: Path, *, timeout_s: float = BUSY_S, migrates: bool = True) -> bool:
    """Check that a file is a store, and bring one of an older version up to date if `migrates`.

    Returns:
        Whether the file has the newest version now.

    Raises:
        FeatureStoreError: the file is something else, damaged or of a newer version.
        StoreUnreachableError: it cannot be read now, or must be migrated and cannot be written or not within the time.
    """
    with reading(path, timeout_s=timeout_s) as connection:
        if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            raise unusable(path, "it is not a feature store")
        if known_version(connection, MIGRATIONS) == len(MIGRATIONS):
            return True
    if not migrates:
        return False
    if timeout_s < BUSY_S:
        raise StoreUnreachableError(f"The feature store {path} has an older version, which takes time to update.")
    with (
        translated_errors(path),
        write_lock(path),
        contextlib.closing(connect(path, mode="rw", timeout_s=BUSY_S)) as connection,
    ):
        migrate(connection, MIGRATIONS)
    return True


def compact(path: Path) -> None:
    """Shrink a file that was just filled."""
    with translated_errors(path), contextlib.closing(connect(path, mode="rw", timeout_s=BUSY_S)) as connection:
        for index in ("label_index", "peak_index", "text_index"):
            connection.execute(f"INSERT INTO {index} ({index}) VALUES ('optimize')")  # noqa: S608 constants
        connection.execute("ANALYZE")
        connection.execute("VACUUM")


def _begin_reading(path: Path, timeout_s: float) -> sqlite3.Connection:
    """Open a store and begin a read transaction; once more if another file was moved here meanwhile.

    Changes that a killed writer left unfinished are rolled back first, which needs a connection that may write.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        inode = _inode(path)
        connection = connect(path, mode="ro", timeout_s=timeout_s)
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            if _inode(path) != inode:
                continue
            # The code that a read-only connection gets if a writer was killed in the middle of a transaction.
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            if not _roll_back(path) and time.monotonic() > deadline:
                raise
            continue
        return connection


def _roll_back(path: Path) -> bool:
    """Roll back the unfinished transaction of a killed writer; False if another process is at it, or writes.

    Raises:
        StoreUnreachableError: the file or its folder cannot be written.
    """
    try:
        with FileLock(lock_file(path)) as lock:
            if not lock.acquire():
                time.sleep(_POLL_S)
                return False
            with contextlib.closing(connect(path, mode="rw", timeout_s=0)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                return True
    except (sqlite3.OperationalError, OSError) as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            time.sleep(_POLL_S)
            return False
        message = (
            f"A process was killed while it wrote the feature store {path}. Rolling the unfinished write back needs "
            f"write permission on {path} and its folder: {error}. Open it once as a user who has that permission."
        )
        raise StoreUnreachableError(message) from error


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


@contextlib.contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Exclude all other writers of a store, in any process, during the block; death releases the lock.

    Raises:
        StoreUnreachableError: other writers held the lock too long.
    """
    with FileLock(lock_file(path)) as lock:
        if not lock.acquire_within(BUSY_S):
            message = f"The feature store {path} cannot be used: others have been writing to it for {BUSY_S:g} s."
            raise StoreUnreachableError(message)
        yield


def lock_file(path: Path) -> Path:
    """Return the empty file whose lock the writers of the store at `path` hold."""
    return path.with_name(f".{path.name}.lock")

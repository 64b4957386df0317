"""Moving a feature store's file to its path: written beside it until it is complete, then moved at once.

Labels by people and language models move from the old file to the new one. A store about something else is renamed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from typing import TYPE_CHECKING

import psutil

from steerserve.store.schema import compact, copy_file, lock_file, translated_errors, write_lock, writing
from steerserve.store.store import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from steerserve.store.stored import StoreMeta, Subject

KEY_CHARS = 12
"""Characters of a dictionary's SHA-256 in the name of a file that was renamed aside."""


@contextlib.contextmanager
def replacing(path: Path, meta: StoreMeta, subject: Subject | None = None) -> Iterator[FeatureStore]:
    """Yield an empty store to fill; at the end of the block it replaces the one at `path`.

    Calibrations and labels by people and language models of the old store are kept. If the old store is about something
    else, it is renamed aside. If the block raises or the process is killed, the old store stays as it is.

    Args:
        path: Path of the store.
        meta: What the new store is about.
        subject: The same with all names of the model; `meta.subject` if None.

    Raises:
        FeatureStoreError: the store cannot be written, or the file at `path` is not a feature store.
    """
    with _replacement_file(path, subject or meta.subject) as temporary:
        yield FeatureStore.create(temporary, meta)
        compact(temporary)


def install_copy(source: Path, path: Path, subject: Subject) -> None:
    """Put a copy of a whole store at `path`; what happens to the old store is as for `replacing`.

    Raises:
        FeatureStoreError: a file cannot be read or written.
    """
    with _replacement_file(path, subject) as temporary:
        copy_file(source, temporary)


def copy_store(source: Path, path: Path) -> None:
    """Copy a store, as it is at this moment, to a new file.

    Raises:
        FeatureStoreError: a file cannot be read or written.
        FileExistsError: `path` exists.
    """
    if path.exists():
        raise FileExistsError(path)
    temporary = _temporary_file(path)
    try:
        with translated_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            copy_file(source, temporary)
        _link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _replacement_file(path: Path, subject: Subject) -> Iterator[Path]:
    """Yield a path for a new store about `subject`; at the end of the block its file replaces the one at `path`."""
    _remove_leftovers(path)
    if path.exists():
        FeatureStore.open(path)
    temporary = _temporary_file(path)
    with contextlib.ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        stack.callback(lock_file(temporary).unlink, missing_ok=True)
        with translated_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _replace(temporary, path, subject)


def _temporary_file(path: Path) -> Path:
    """Return where this thread writes the file that will be moved to `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")


def _replace(file: Path, path: Path, subject: Subject) -> None:
    """Move a store to `path`. Writers of the old store wait meanwhile, and then find the new one."""
    with write_lock(path):
        if not path.exists():
            with translated_errors(path):
                # Delete a journal left by an earlier file of this name: SQLite would apply it to the new file.
                path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
                file.replace(path)
            return
    with writing(path):
        new, old = FeatureStore(file), FeatureStore(path)
        is_same, sha256 = old.describes(subject), old.meta().dictionary_sha256
        if sha256 == subject.sha256:
            new.carry_over(old, labels_alone=not is_same)
        if not is_same:
            _rename_aside(path, sha256)
        with translated_errors(path):
            file.replace(path)


def _rename_aside(path: Path, sha256: str) -> None:
    """Name a store after the weights that it is about; a file that has that name already is left alone."""
    for number in itertools.count(1):
        ending = "" if number == 1 else f"-{number}"
        with contextlib.suppress(FileExistsError):
            _link(path, path.with_name(f"{path.stem}-{sha256[:KEY_CHARS]}{ending}{path.suffix}"))
            return


def _link(file: Path, name: Path) -> None:
    """Give a file a second name; rename it if the file system has no hard links.

    Raises:
        FeatureStoreError: it cannot be renamed.
        FileExistsError: a file of that name exists.
    """
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:
        if name.exists():
            raise FileExistsError(name) from None
        with translated_errors(name):
            file.replace(name)


def _remove_leftovers(path: Path) -> None:
    """Delete the temporary files of killed processes."""
    for file in (*path.parent.glob(f".{path.name}.*-*"), *path.parent.glob(f"..{path.name}.*-*.lock")):
        owner = file.name.lstrip(".").removeprefix(f"{path.name}.").partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            file.unlink(missing_ok=True)

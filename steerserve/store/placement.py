"""Putting a feature store's file in its place: beside it until it is whole, and then at once.

What people and models said of a dictionary moves from the file there to the one that takes its place; a file about
something else gets another name.
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


@contextlib.contextmanager
def replacing(path: Path, meta: StoreMeta, subject: Subject | None = None) -> Iterator[FeatureStore]:
    """Give an empty store to be filled; when the block ends well it takes the place of the one at `path`.

    Labels by people and language models and the calibrations of that one are kept. One that was about something
    else gets another name. A block that fails, or a process that is killed, leaves the old one as it is.

    Args:
        path: Where it will be.
        meta: What it is about.
        subject: The same, with all names of the model.

    Raises:
        FeatureStoreError: it cannot be made, or something that is no feature store is in its place.
    """
    with _taking_the_place_of(path, subject or meta.subject) as aside:
        yield FeatureStore.create(aside, meta)
        compact(aside)


def place_copy(source: Path, path: Path, subject: Subject) -> None:
    """Put a copy of a whole store at `path`, as `replacing` does with a new one.

    Raises:
        FeatureStoreError: it cannot be read or written.
    """
    with _taking_the_place_of(path, subject) as aside:
        copy_file(source, aside)


def copy_store(source: Path, path: Path) -> None:
    """Copy a store, as it is at this moment, to a file that is not there yet.

    Raises:
        FeatureStoreError: it cannot be read or written.
        FileExistsError: there is a file.
    """
    if path.exists():
        raise FileExistsError(path)
    aside = _aside(path)
    try:
        with translated_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            copy_file(source, aside)
        _link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _taking_the_place_of(path: Path, subject: Subject) -> Iterator[Path]:
    _remove_leftovers(path)
    if path.exists():
        FeatureStore.open(path)
    aside = _aside(path)
    with contextlib.ExitStack() as stack:
        stack.callback(aside.unlink, missing_ok=True)
        stack.callback(lock_file(aside).unlink, missing_ok=True)
        with translated_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _take_place(aside, path, subject)


def _aside(path: Path) -> Path:
    """Return where this thread writes what will be at `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")


def _take_place(file: Path, path: Path, subject: Subject) -> None:
    """Move a store to `path`, and let it take over from the one there as `replacing` says.

    Whoever sets a label there meanwhile waits for its turn, and then finds this file.
    """
    with write_lock(path):
        if not path.exists():
            with translated_errors(path):
                # Of a file that was moved away: SQLite would take it for this one's.
                path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
                file.replace(path)
            return
    with writing(path):
        _follow(FeatureStore(file), FeatureStore(path), subject)
        with translated_errors(path):
            file.replace(path)


def _follow(store: FeatureStore, older: FeatureStore, subject: Subject) -> None:
    """Take over from the store whose place this one takes; one about something else is kept beside it."""
    is_same, sha256 = older.describes(subject), older.meta().dictionary_sha256
    if sha256 == subject.sha256:
        store.carry_over(older, labels_alone=not is_same)
    if not is_same:
        _keep(older.path, sha256)


def _keep(path: Path, sha256: str) -> None:
    """Give a store another name, after the weights that it is about; one that has that name already is spared."""
    for number in itertools.count(1):
        kept = path.with_name(f"{path.stem}-{sha256[:12]}{'' if number == 1 else f'-{number}'}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            _link(path, kept)
            return


def _link(file: Path, name: Path) -> None:
    """Give a file another name; where it cannot have two, it has that one alone.

    Raises:
        FeatureStoreError: it cannot be renamed.
        FileExistsError: there is a file of that name.
    """
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:  # no links on this file system
        if name.exists():
            raise FileExistsError(name) from None
        with translated_errors(name):
            file.replace(name)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed left aside."""
    for file in (*path.parent.glob(f".{path.name}.*-*"), *path.parent.glob(f"..{path.name}.*-*.lock")):
        owner = file.name.lstrip(".").removeprefix(f"{path.name}.").partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            file.unlink(missing_ok=True)

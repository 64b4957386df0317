"""Where the feature store of a dictionary is. Two rules decide where it is written.

1. Beside the weights, in the dictionary's folder, if that is a writable folder that the user named (`path:`).
2. Otherwise, or if the file beside the weights is about something else, in `.features/` of the first dictionary folder,
   named after the weights.

A store that exists by either rule is used on. One that was shipped with a dictionary is read, and copied before it is
written. A store about something else is never written. If the weights that it describes are gone from the folder, it is
renamed aside, and used on under its new name if they are served again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.core.errors import DictionarySourceError, FeatureStoreError
from steerserve.dictionaries.layouts import find_layout
from steerserve.dictionaries.sources import locate_dictionary
from steerserve.store.placement import KEY_CHARS, install_copy, replacing
from steerserve.store.records import STORES_FOLDER
from steerserve.store.schema import BUSY_S, StoreUnreachableError, unusable
from steerserve.store.store import FeatureStore
from steerserve.store.stored import Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from steerserve.store.stored import StoreMeta

STORE_FILE = "features.sqlite3"


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """The files that may be the feature store of one dictionary."""

    subject: Subject
    """The dictionary and model that the store has to describe."""
    own: Path
    """File in `.features/`, named after the weights."""
    beside: Path | None = None
    """File beside the weights; None if their folder is not ours to write."""
    shipped: Path | None = None
    """File beside weights in a folder that is not ours to write; None for other dictionaries."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths by the rules, in the order in which they are read; they need not exist."""
        return tuple(path for path in (self.own, self.beside, self.shipped) if path is not None)

    def find(self, *, timeout_s: float = BUSY_S) -> FeatureStore | None:
        """Return the store to read; None if there is no store.

        Raises:
            FeatureStoreError: there is no store, and a file at one of the paths cannot be used.
            StoreUnreachableError: one of the files cannot be read now.
        """
        refusals = list[FeatureStoreError]()
        for store in self._open_all((*self.paths, *self._renamed(*self.paths)), refusals, timeout_s):
            if store.describes(self.subject, timeout_s=timeout_s):
                if not store.is_outdated:
                    return store
                if timeout_s < BUSY_S:
                    raise StoreUnreachableError(f"{store.path} has an older version, which takes time to copy.")
                return FeatureStore.open(self.prepare())
        if refusals:
            raise refusals[0]
        return None

    def prepare(self) -> Path:
        """Return the path to write to; a shipped store is copied there if it is the only one.

        Raises:
            FeatureStoreError: it cannot be copied, or a file at one of the paths is not a feature store.
        """
        writable = [path for path in (self.own, self.beside) if path is not None]
        for path in writable:
            if path.is_symlink():  # it could lead anywhere
                raise unusable(path, "it is a link")
        refusals = list[FeatureStoreError]()
        for paths in (writable, self._renamed(*writable)):
            for store in self._open_all(paths, refusals):
                if store.describes(self.subject):
                    return store.path
            if refusals and paths is writable:
                raise refusals[0]
        target = self._new_path()
        shipped = [self.shipped] if self.shipped is not None else []
        for store in self._open_all((*shipped, *self._renamed(*shipped)), []):
            if store.describes(self.subject):
                install_copy(store.path, target, self.subject)
                break
        return target

    def store(self, meta: StoreMeta) -> FeatureStore:
        """Return the store to write to; an empty one, with the labels of these weights, is made if needed.

        Raises:
            FeatureStoreError: it cannot be made, or a file at one of the paths is not a feature store.
        """
        path = self.prepare()
        if not path.exists() or not FeatureStore.open(path).describes(self.subject):
            with self.replacing(meta):
                pass
        return FeatureStore.open(path)

    @contextlib.contextmanager
    def replacing(self, meta: StoreMeta) -> Iterator[FeatureStore]:
        """Yield an empty store for an interpretation to fill, as `placement.replacing` does.

        Raises:
            FeatureStoreError: it cannot be made, or a file at one of the paths is not a feature store.
        """
        path = self.prepare()
        with replacing(path, meta, self.subject) as fresh:
            yield fresh
            if not path.exists() or FeatureStore.open(path).meta().dictionary_sha256 != self.subject.sha256:
                self._carry_labels(fresh)

    def import_store(self, file: Path) -> Path:
        """Replace this store by a copy of `file`, keeping labels and calibrations that only this one has.

        Of two labels of one origin the newer one becomes current. Returns the path of the store.

        Raises:
            FeatureStoreError: the file is not a store of these weights, or this store cannot be written.
        """
        meta = FeatureStore.open(file).meta()
        if meta.dictionary_sha256 != self.subject.sha256:
            message = (
                f"{file} is about other weights (SHA-256 {meta.dictionary_sha256[:KEY_CHARS]}…) than the dictionary's "
                f"({self.subject.sha256[:KEY_CHARS]}…)."
            )
            raise FeatureStoreError(message)
        path = self.prepare()
        install_copy(file, path, meta.subject)
        return path

    def _new_path(self) -> Path:
        """Return the path for a new store by the two rules."""
        if self.beside is None:
            return self.own
        if not self.beside.exists():
            return self.beside
        is_outdated = FeatureStore.open(self.beside).meta().dictionary_sha256 != self.subject.sha256
        return self.beside if is_outdated and self._weights_lie_beside() else self.own

    def _carry_labels(self, fresh: FeatureStore) -> None:
        """Copy labels that people and language models gave these weights when another model used them."""
        weights = Subject(self.subject.sha256)
        for store in self._open_all((*self.paths, *self._renamed(*self.paths)), []):
            if store.describes(weights):
                fresh.carry_over(store, labels_alone=True)

    def _renamed(self, *paths: Path) -> list[Path]:
        """Return the files about these weights that were renamed aside at some paths."""
        keys = {path: "" if path == self.own else self.subject.sha256[:KEY_CHARS] for path in paths}
        return [file for path, key in keys.items() for file in sorted(path.parent.glob(f"{path.stem}-{key}*.sqlite3"))]

    def _open_all(
        self, paths: Iterable[Path], refusals: list[FeatureStoreError], timeout_s: float = BUSY_S
    ) -> Iterator[FeatureStore]:
        """Yield the stores among some files, no links: they could lead anywhere. Shipped files are not written."""
        for path in paths:
            if path.is_file() and not path.is_symlink():
                is_shipped = self.shipped is not None and path.parent == self.shipped.parent
                try:
                    store = FeatureStore.open(path, timeout_s=timeout_s, migrates=not is_shipped)
                except StoreUnreachableError:
                    raise
                except FeatureStoreError as error:
                    refusals.append(error)
                else:
                    yield store

    def _weights_lie_beside(self) -> bool:
        """Tell whether the weights in the dictionary's folder are, at this moment, those of the subject."""
        if self.beside is None:
            return False
        folder = self.beside.parent
        try:
            layout = find_layout([file.name for file in folder.iterdir()], str(folder))
            with (folder / layout.weights).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.subject.sha256
        except (OSError, DictionarySourceError):
            return False


def locate_store(
    source: str, subject: Subject, dictionary_dirs: Sequence[Path], allowed_dirs: Sequence[Path]
) -> StoreLocation:
    """Return the location of the store of the dictionary at `source`; its folder may be gone since it was loaded.

    Args:
        source: Source of the dictionary.
        subject: What the store has to describe.
        dictionary_dirs: Configured folders; `.features/` is in the first one.
        allowed_dirs: Folders that `path:` sources may lie in.
    """
    own = dictionary_dirs[0] / STORES_FOLDER / f"{subject.sha256}.sqlite3"
    try:
        folder = locate_dictionary(source, allowed_dirs)
    except DictionarySourceError:
        folder = None
    if folder is None:
        return StoreLocation(subject, own)
    file = folder.path / STORE_FILE
    if source.startswith("path:") and os.access(folder.path, os.W_OK):
        return StoreLocation(subject, own, beside=file)
    return StoreLocation(subject, own, shipped=file)

"""Where a dictionary's feature store is: beside the weights, or else among our own files.

Beside the weights it is where those may be written, and nothing about other weights is there. What is about something
else is never written to; a harvest alone gives it another name, and only where the weights in the folder are its own.
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
from steerserve.model.names import plain_name
from steerserve.store.placement import place_copy, replacing
from steerserve.store.schema import BUSY_S, StoreUnreachableError, unusable
from steerserve.store.store import FeatureStore
from steerserve.store.stored import Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from steerserve.store.stored import StoreMeta

STORE_FILE = "features.sqlite3"
STORES_FOLDER = ".features"
_KEY_CHARS = 12


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """The places of one dictionary's store."""

    subject: Subject
    """What it has to be about."""
    own: Path
    """Where it is written, unless something about other weights is there."""
    apart: Path
    """Among our own files, named after the weights: one that is there is used wherever the dictionary is."""
    shipped: Path | None = None
    """Where one came with the dictionary, if one did; never written."""

    @property
    def places(self) -> tuple[Path, ...]:
        """All places, in the order in which they are looked at."""
        places = (*self._written(), *([self.shipped] if self.shipped is not None else []))
        return tuple(dict.fromkeys(places))

    def find(self, *, timeout_s: float = BUSY_S) -> FeatureStore | None:
        """Return the store that is read; None where there is none.

        Raises:
            FeatureStoreError: there is none, and what lies in one of the places cannot be used.
            StoreUnreachableError: one of the files cannot be read now.
        """
        refusals = list[FeatureStoreError]()
        for store in self._stores((*self.places, *self._kept()), refusals, timeout_s):
            if store.describes(self.subject, timeout_s=timeout_s):
                return store
        if refusals:
            raise refusals[0]
        return None

    def prepare(self, *, for_interpretation: bool = False) -> Path:
        """Return where the store is to be written, with a copy there of the one that is read elsewhere.

        Only for a harvest it may be the place of a store about something else, which is to make room.

        Raises:
            FeatureStoreError: it cannot be copied, or what is in its place is no feature store.
        """
        free: list[Path] = []
        for place in self._written():
            if place.is_symlink():  # it could lead anywhere
                raise unusable(place, "it is a link")
            if not place.exists():
                free.append(place)
            elif FeatureStore.open(place).describes(self.subject):
                return place
        wanted = (self.own, self.apart, *self._written())
        target = next((place for place in wanted if place in free), self._written()[0])
        elsewhere = [self.shipped] if self.shipped is not None else []
        for store in self._stores((*elsewhere, *self._kept()), []):
            if store.describes(self.subject):
                place_copy(store.path, target, self.subject)
                return target
        if for_interpretation and self.own not in free and self._lies_beside():
            return self.own
        return target

    def store(self, meta: StoreMeta) -> FeatureStore:
        """Return the store where it can be written; made where there is none, with the labels of these weights.

        Raises:
            FeatureStoreError: it cannot be made, or what is in its place is no feature store.
        """
        path = self.prepare()
        if not path.exists() or not FeatureStore.open(path).describes(self.subject):
            with replacing(path, meta, self.subject) as fresh:
                self._take_labels(fresh)
        return FeatureStore.open(path)

    @contextlib.contextmanager
    def replacing(self, meta: StoreMeta) -> Iterator[FeatureStore]:
        """Give an empty store for a harvest, as `placement.replacing` does.

        Raises:
            FeatureStoreError: it cannot be made, or what is in its place is no feature store.
        """
        path = self.prepare(for_interpretation=True)
        with replacing(path, meta, self.subject) as fresh:
            yield fresh
            if not path.exists():
                self._take_labels(fresh)

    def take_whole(self, file: Path) -> Path:
        """Put a copy of a whole store in place of this one, with the labels and calibrations that this one has besides.

        Of two labels by the same origin the newer one counts. Returns where the store is.

        Raises:
            FeatureStoreError: the file is no store, or one of other weights; or this one cannot be written.
        """
        meta = FeatureStore.open(file).meta()
        if meta.dictionary_sha256 != self.subject.sha256:
            message = (
                f"{file} is about other weights ({meta.dictionary_sha256[:_KEY_CHARS]}) than the dictionary's "
                f"({self.subject.sha256[:_KEY_CHARS]})."
            )
            raise FeatureStoreError(message)
        path = self.prepare(for_interpretation=True)
        place_copy(file, path, meta.subject)
        return path

    def _take_labels(self, fresh: FeatureStore) -> None:
        """Take what was said of the same weights when they were used with another model."""
        weights = Subject(self.subject.sha256)
        for store in self._stores((*self.places, *self._kept()), []):
            if store.describes(weights):
                fresh.carry_over(store, labels_alone=True)

    def _written(self) -> tuple[Path, ...]:
        """The places that may be written; the first is for weights that are used with several models."""
        subject = self.subject
        places = [self.apart, self.own]
        if subject.model:
            named = f"{plain_name(subject.model)} {subject.contents}"
            key = hashlib.sha256(named.encode()).hexdigest()[:_KEY_CHARS]
            places.insert(0, self.apart.with_stem(f"{self.apart.stem}-{key}"))
        return tuple(dict.fromkeys(places))

    def _kept(self) -> list[Path]:
        """Files that made room for those of other weights, which may have lain there since."""
        found: list[Path] = []
        for place in dict.fromkeys((self.own, self.shipped, self.apart)):
            if place is not None:
                pattern = f"{place.stem}-{self.subject.sha256[:_KEY_CHARS]}*{place.suffix}"
                found += sorted(place.parent.glob(pattern))
        return found

    @staticmethod
    def _stores(
        places: Iterable[Path], refusals: list[FeatureStoreError], timeout_s: float = BUSY_S
    ) -> Iterator[FeatureStore]:
        """Yield the stores among some files; a link is none: it could lead anywhere."""
        for place in places:
            if place.is_file() and not place.is_symlink():
                try:
                    store = FeatureStore.open(place, timeout_s=timeout_s)
                except StoreUnreachableError:
                    raise
                except FeatureStoreError as error:
                    refusals.append(error)
                else:
                    yield store

    def _lies_beside(self) -> bool:
        """Tell whether the weights beside the written file are, at this moment, those that the store is about."""
        if self.own == self.apart:
            return False
        folder = self.own.parent
        try:
            layout = find_layout([file.name for file in folder.iterdir()], str(folder))
            with (folder / layout.weights).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.subject.sha256
        except (OSError, DictionarySourceError):
            return False


def locate_store(
    source: str, subject: Subject, dictionary_dirs: Sequence[Path], allowed_dirs: Sequence[Path]
) -> StoreLocation:
    """Return where the store of the dictionary at `source` is, or would be.

    Args:
        source: Of the dictionary.
        subject: What the store has to be about.
        dictionary_dirs: Our own files are in the first of them.
        allowed_dirs: Folders that `path:` sources may lie in.

    Raises:
        DictionarySourceError: there is no such folder, or it may not be read.
    """
    folder = locate_dictionary(source, allowed_dirs)
    if folder is not None and source.startswith("path:") and os.access(folder.path, os.W_OK):
        apart = own_location(subject, dictionary_dirs).apart
        return StoreLocation(subject, folder.path / STORE_FILE, apart)
    return own_location(subject, dictionary_dirs, folder.path / STORE_FILE if folder is not None else None)


def own_location(subject: Subject, dictionary_dirs: Sequence[Path], shipped: Path | None = None) -> StoreLocation:
    """Return the place among our own files, which does not depend on where the dictionary is."""
    apart = dictionary_dirs[0] / STORES_FOLDER / f"{subject.sha256}.sqlite3"
    return StoreLocation(subject, apart, apart, shipped)

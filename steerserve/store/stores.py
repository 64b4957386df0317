"""The feature stores of the dictionaries that are loaded."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import DictionarySourceError, FeatureStoreError
from steerserve.model.lens import official_name
from steerserve.store.location import StoreLocation, locate_store, own_location
from steerserve.store.schema import BUSY_S, GLANCE_S, StoreUnreachableError
from steerserve.store.store import FeatureStore
from steerserve.store.stored import StoreMeta, Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from steerserve.dictionaries.dictionary import Dictionary

    Key = tuple[str, str, str]
    """Source, weights, contents."""

_FORCED = "was made for the model"
"""What a dictionary's warnings say where it was made for another model than the one that is served."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """What came of the last look at a dictionary's files."""

    inodes: tuple[int, ...]
    changes: tuple[int, ...]
    """When the files were written last."""
    store: FeatureStore | None

    def holds(self, inodes: tuple[int, ...], changes: tuple[int, ...]) -> bool:
        """Tell whether a look at files like these would come to the same."""
        return self.inodes == inodes and (self.store is not None or self.changes == changes)


class FeatureStores:
    """Finds the store of a dictionary, whenever it is asked: jobs make new ones. Any thread."""

    def __init__(self, dictionary_dirs: Sequence[Path], allowed_dirs: Sequence[Path]) -> None:
        """Take the configured folders, and all that `path:` sources may lie in."""
        self._dictionary_dirs = tuple(dictionary_dirs)
        self._allowed_dirs = tuple(allowed_dirs)
        self._model, self._names = "", tuple[str, ...]()
        self._lock = threading.Lock()
        """Never held while a file is read."""
        self._locations: dict[Key, StoreLocation] = {}
        self._found: dict[Key, _Found] = {}
        self._told: set[str] = set()
        """What the log says already."""
        self._looking: set[Key] = set()
        """Dictionaries whose files a thread looks at, because an event loop had no time for it."""

    def serve(self, model: str, names: Sequence[str] = ()) -> None:
        """Say which model the dictionaries are used with: what was measured with another one is none of theirs."""
        with self._lock:
            self._model, self._names = model, tuple(names)
            self._locations.clear()
            self._found.clear()

    def find(self, dictionary: Dictionary) -> FeatureStore | None:
        """Return a dictionary's store; None where there is none, or none that can be used. Not for an event loop."""
        return self._find(dictionary, BUSY_S)

    def for_writing(self, dictionary: Dictionary, model: str) -> FeatureStore:
        """Return a dictionary's store where it can be written; made, or copied from the one that came with it.

        Raises:
            FeatureStoreError: it cannot be made, or what is in its place is no feature store.
        """
        location = self.location(dictionary)
        subject = location.subject
        name = subject.model or model
        meta = StoreMeta(dictionary.sha256, dictionary.d_sae, name, created=time.time(), contents=dictionary.contents)
        written = location.store(meta)
        written.claim(subject)
        found = self.find(dictionary)  # has the labels in memory
        return found if found is not None and found.path == written.path else written

    def location(self, dictionary: Dictionary) -> StoreLocation:
        """Return where a dictionary's store is, or would be."""
        key = _key(dictionary)
        with self._lock:
            known = self._locations.get(key)
        if known is None:
            known = self._locate(dictionary)
            with self._lock:
                self._locations[key] = known
        return known

    def labels(self, dictionary: Dictionary, features: Iterable[int]) -> dict[int, str]:
        """Return the labels of those features that have one. An event loop may call it: it hardly waits there."""
        store = self._find(dictionary, GLANCE_S if _is_on_event_loop() else BUSY_S)
        return store.labels(features) if store is not None else {}

    def label(self, dictionary: Dictionary, feature: int) -> str | None:
        """Return a feature's label, as `labels` does."""
        return self.labels(dictionary, [feature]).get(feature)

    def statistics(self, dictionary: Dictionary) -> dict[str, Any]:
        """Return what the dictionary object says of its features. Not for an event loop."""
        store = self.find(dictionary)
        if store is None:
            return {"interpreted": False}
        try:
            meta, counts = store.meta(), store.counts()
        except FeatureStoreError as error:
            _log.warning("dictionary %s: %s", dictionary.id, error.message)
            return {"interpreted": False}
        return {
            "interpreted": counts.num_features > 0,
            "tokens": meta.num_tokens,
            "num_live": counts.num_live if counts.num_features else None,
            "labelled": counts.num_labelled,
            "calibrated": counts.num_calibrated,
        }

    def _find(self, dictionary: Dictionary, timeout_s: float) -> FeatureStore | None:
        key, location = _key(dictionary), self.location(dictionary)
        inodes, changes = _seen(location)
        with self._lock:
            known = self._found.get(key)
        if known is not None and known.holds(inodes, changes):
            return known.store
        try:
            store = location.find(timeout_s=timeout_s)
        except StoreUnreachableError as error:  # the next call may find it
            if timeout_s < BUSY_S:
                self._look_elsewhere(dictionary)
            else:
                self._tell(dictionary, error)
            return known.store if known is not None else None
        except FeatureStoreError as error:
            self._tell(dictionary, error)
            store = None
        if store is not None and known is not None and known.store is not None and known.store.path == store.path:
            store = known.store  # knows what its labels were
        with self._lock:
            self._found[key] = _Found(inodes, changes, store)
        return store

    def _look_elsewhere(self, dictionary: Dictionary) -> None:
        """Look at a dictionary's files in a thread, with all the time that it takes."""
        key = _key(dictionary)

        def look() -> None:
            try:
                self._find(dictionary, BUSY_S)
            finally:
                with self._lock:
                    self._looking.discard(key)

        with self._lock:
            if key in self._looking:
                return
            self._looking.add(key)
        threading.Thread(target=look, name="feature-store", daemon=True).start()

    def _tell(self, dictionary: Dictionary, error: FeatureStoreError) -> None:
        """Log once why a file is not used."""
        with self._lock:
            is_new = error.message not in self._told
            self._told.add(error.message)
        if is_new:
            _log.warning("dictionary %s: nothing is known of its features: %s", dictionary.id, error.message)

    def _locate(self, dictionary: Dictionary) -> StoreLocation:
        subject = subject_of(dictionary, self._model, self._names)
        try:
            return locate_store(dictionary.source, subject, self._dictionary_dirs, self._allowed_dirs)
        except DictionarySourceError:  # its folder has gone since it was loaded
            return own_location(subject, self._dictionary_dirs)


def subject_of(dictionary: Dictionary, model: str, names: Sequence[str] = ()) -> Subject:
    """Return what the store of a dictionary that `model` is used with has to be about.

    Args:
        dictionary: One that was loaded.
        model: The model's id; empty where it is not known.
        names: What it is called as well.
    """
    made_for = dictionary.sae.cfg.metadata.model_name
    known = [model, *names] if model else []
    # The loader held it against the model's names; unlike the id, it does not depend on where the model is.
    if known and made_for and not any(_FORCED in warning for warning in dictionary.warnings):
        known.insert(0, str(made_for))
    spelled = dict.fromkeys([*known, *map(official_name, known)])
    return Subject(dictionary.sha256, known[0] if known else "", tuple(spelled), dictionary.contents)


def _key(dictionary: Dictionary) -> Key:
    return dictionary.source, dictionary.sha256, dictionary.contents


def _seen(location: StoreLocation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the inodes and times of what lies in a store's places; 0 for nothing."""
    inodes, changes = list[int](), list[int]()
    for place in location.places:
        try:
            status = place.stat()
        except OSError:
            inodes.append(0)
            changes.append(0)
        else:
            inodes.append(status.st_ino)
            changes.append(status.st_mtime_ns)
    return tuple(inodes), tuple(changes)


def _is_on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

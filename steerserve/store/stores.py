"""The feature stores of the dictionaries that are loaded."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import FeatureStoreError
from steerserve.model.lens import official_name
from steerserve.store.location import StoreLocation, locate_store
from steerserve.store.schema import BUSY_S, GLANCE_S, StoreUnreachableError
from steerserve.store.stored import StoreMeta, Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.store.store import FeatureStore

    Key = tuple[str, str, str]
    """Source, SHA-256 of the weights and SHA-256 of the contents of a dictionary."""

_OTHER_MODEL = "was made for the model"
"""Part of the warning of a dictionary that was loaded for another model than the one that it was made for."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _LookUp:
    """Result of the last look at the files that may be a dictionary's store."""

    inodes: tuple[int, ...]
    """Inodes of the files; 0 for one that does not exist."""
    modified: tuple[int, ...]
    """Times in nanoseconds when the files were last written."""
    store: FeatureStore | None
    """The store that was there; None if there was none."""

    def is_current(self, inodes: tuple[int, ...], modified: tuple[int, ...]) -> bool:
        """Tell whether looking at files in this state would give the same result."""
        return self.inodes == inodes and (self.store is not None or self.modified == modified)


class FeatureStores:
    """Finds the store of a dictionary at every call, since jobs make new ones. Any thread."""

    def __init__(self, dictionary_dirs: Sequence[Path], allowed_dirs: Sequence[Path]) -> None:
        """Take the configured folders, and all folders that `path:` sources may lie in."""
        self._dictionary_dirs = tuple(dictionary_dirs)
        self._allowed_dirs = tuple(allowed_dirs)
        self._model, self._model_names = "", tuple[str, ...]()
        self._lock = threading.Lock()
        """Never held while a file is read."""
        self._locations: dict[Key, StoreLocation] = {}
        self._look_ups: dict[Key, _LookUp] = {}
        self._logged: set[str] = set()
        """Messages that are in the log already."""
        self._searched: set[Key] = set()
        """Dictionaries whose store a background thread looks for."""

    def serve(self, model: str, names: Sequence[str] = ()) -> None:
        """Set the model that the dictionaries are used with; measurements with other models are not used."""
        with self._lock:
            self._model, self._model_names = model, tuple(names)
            self._locations.clear()
            self._look_ups.clear()

    def find(self, dictionary: Dictionary) -> FeatureStore | None:
        """Return a dictionary's store; None if it has none that can be used. Not for an event loop."""
        return self._find(dictionary, BUSY_S)

    def for_writing(self, dictionary: Dictionary, model: str) -> FeatureStore:
        """Return a dictionary's store at a path where it can be written; it is made or copied there if needed.

        Raises:
            FeatureStoreError: it cannot be made, or the file at its path is not a feature store.
        """
        location = self.location(dictionary)
        subject = location.subject
        name = subject.model or model
        meta = StoreMeta(dictionary.sha256, dictionary.d_sae, name, created=time.time(), contents=dictionary.contents)
        written = location.store(meta)
        written.claim(subject)
        cached = self.find(dictionary)  # has labels in memory
        return cached if cached is not None and cached.path == written.path else written

    def location(self, dictionary: Dictionary) -> StoreLocation:
        """Return where a dictionary's store is, or would be."""
        key = _key(dictionary)
        with self._lock:
            location = self._locations.get(key)
        if location is None:
            subject = subject_of(dictionary, self._model, self._model_names)
            location = locate_store(dictionary.source, subject, self._dictionary_dirs, self._allowed_dirs)
            with self._lock:
                self._locations[key] = location
        return location

    def labels(self, dictionary: Dictionary, features: Iterable[int]) -> dict[int, str]:
        """Return the labels of those features that have one. On an event loop it waits only for an instant."""
        store = self._find(dictionary, GLANCE_S if _is_on_event_loop() else BUSY_S)
        return store.labels(features) if store is not None else {}

    def label(self, dictionary: Dictionary, feature: int) -> str | None:
        """Return a feature's label, as `labels` does; None if it has none."""
        return self.labels(dictionary, [feature]).get(feature)

    def statistics(self, dictionary: Dictionary) -> dict[str, Any]:
        """Return the fields of the dictionary object that are about its features. Not for an event loop."""
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
        inodes, modified = _file_states(location.paths)
        with self._lock:
            last = self._look_ups.get(key)
        if last is not None and last.is_current(inodes, modified):
            return last.store
        try:
            store = location.find(timeout_s=timeout_s)
        except StoreUnreachableError as error:  # the next call may find it
            if timeout_s < BUSY_S:
                self._find_in_background(dictionary)
            else:
                self._log_once(dictionary, error)
            return last.store if last is not None else None
        except FeatureStoreError as error:
            self._log_once(dictionary, error)
            store = None
        if store is not None and last is not None and last.store is not None and last.store.path == store.path:
            store = last.store  # keeps the labels that it has in memory
        with self._lock:
            self._look_ups[key] = _LookUp(inodes, modified, store)
        return store

    def _find_in_background(self, dictionary: Dictionary) -> None:
        """Look for a dictionary's store in a thread, which may wait as long as it takes."""
        key = _key(dictionary)

        def find() -> None:
            try:
                self._find(dictionary, BUSY_S)
            finally:
                with self._lock:
                    self._searched.discard(key)

        with self._lock:
            if key in self._searched:
                return
            self._searched.add(key)
        threading.Thread(target=find, name="feature-store", daemon=True).start()

    def _log_once(self, dictionary: Dictionary, error: FeatureStoreError) -> None:
        with self._lock:
            is_new = error.message not in self._logged
            self._logged.add(error.message)
        if is_new:
            _log.warning("dictionary %s is used without its feature store: %s", dictionary.id, error.message)


def subject_of(dictionary: Dictionary, model: str, names: Sequence[str] = ()) -> Subject:
    """Return what the store of a dictionary that `model` is used with has to describe.

    Args:
        dictionary: A loaded dictionary.
        model: Id of the model; empty if unknown.
        names: Other names of the model.
    """
    made_for = dictionary.sae.cfg.metadata.model_name
    all_names = [model, *names] if model else []
    # The loader has compared this name with the model's. Unlike the id, it does not depend on where the model lies.
    if all_names and made_for and not any(_OTHER_MODEL in warning for warning in dictionary.warnings):
        all_names.insert(0, str(made_for))
    spellings = dict.fromkeys([*all_names, *map(official_name, all_names)])
    return Subject(dictionary.sha256, all_names[0] if all_names else "", tuple(spellings), dictionary.contents)


def _key(dictionary: Dictionary) -> Key:
    return dictionary.source, dictionary.sha256, dictionary.contents


def _file_states(paths: Iterable[Path]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return inodes and modification times of files; 0 for one that does not exist."""
    inodes, modified = list[int](), list[int]()
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            inodes.append(0)
            modified.append(0)
        else:
            inodes.append(status.st_ino)
            modified.append(status.st_mtime_ns)
    return tuple(inodes), tuple(modified)


def _is_on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

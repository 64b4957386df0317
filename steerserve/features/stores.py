"""The feature stores of the dictionaries that are loaded."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import DictionarySourceError, FeatureStoreError
from steerserve.features.location import StoreLocation, locate_store, own_location
from steerserve.features.store import FeatureStore
from steerserve.features.stored import StoreMeta

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from steerserve.dictionaries.dictionary import Dictionary

_log = logging.getLogger(__name__)


class FeatureStores:
    """Finds the store of a dictionary, whenever it is asked: jobs make new ones. Any thread."""

    def __init__(self, dictionary_dirs: Sequence[Path], allowed_dirs: Sequence[Path]) -> None:
        """Take the configured folders, and all that `path:` sources may lie in."""
        self._dictionary_dirs = tuple(dictionary_dirs)
        self._allowed_dirs = tuple(allowed_dirs)
        self._lock = threading.Lock()
        self._locations: dict[tuple[str, str], StoreLocation] = {}
        self._stores: dict[str, tuple[Path, int, FeatureStore]] = {}
        self._refused: set[tuple[Path, int, int]] = set()
        """Files that could not be used, with their inodes and times of change: each is told of once."""

    def find(self, dictionary: Dictionary) -> FeatureStore | None:
        """Return a dictionary's store; None where there is none, or none that can be used."""
        path = self.location(dictionary).existing()
        if path is None:
            return None
        try:
            status = path.stat()
        except OSError:
            return None
        with self._lock:
            known = self._stores.get(dictionary.sha256)
            if known is not None and known[:2] == (path, status.st_ino):
                return known[2]
            seen = path, status.st_ino, status.st_mtime_ns
            if seen in self._refused:
                return None
            try:
                store = self._open(path, dictionary)
            except FeatureStoreError as error:
                _log.warning("dictionary %s: nothing is known of its features: %s", dictionary.id, error.message)
                self._refused.add(seen)
                return None
            self._stores[dictionary.sha256] = path, status.st_ino, store
            return store

    def for_writing(self, dictionary: Dictionary, model: str) -> FeatureStore:
        """Return a dictionary's store where it can be written; made, or copied from the one that came with it.

        Raises:
            FeatureStoreError: it cannot be made, or what is in its place is no feature store.
        """
        meta = StoreMeta(dictionary.sha256, dictionary.d_sae, model, created=time.time())
        written = self.location(dictionary).store(meta)
        return self.find(dictionary) or written

    def location(self, dictionary: Dictionary) -> StoreLocation:
        """Return where a dictionary's store is, or would be."""
        key = dictionary.source, dictionary.sha256
        with self._lock:
            if key not in self._locations:
                self._locations[key] = self._locate(dictionary)
            return self._locations[key]

    def labels(self, dictionary: Dictionary, features: Iterable[int]) -> dict[int, str]:
        """Return the labels of those features that have one, from memory: an event loop may call it."""
        store = self.find(dictionary)
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

    def _locate(self, dictionary: Dictionary) -> StoreLocation:
        try:
            return locate_store(dictionary.source, dictionary.sha256, self._dictionary_dirs, self._allowed_dirs)
        except DictionarySourceError:  # its folder has gone since it was loaded
            return own_location(dictionary.sha256, self._dictionary_dirs)

    @staticmethod
    def _open(path: Path, dictionary: Dictionary) -> FeatureStore:
        store = FeatureStore.open(path)
        if not store.is_about(dictionary.sha256):
            raise FeatureStoreError(f"{path} is about other weights. Interpret the dictionary again.")
        return store

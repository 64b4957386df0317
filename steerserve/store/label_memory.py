"""The winning labels of a feature store that were asked for, in memory until its file changes."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING

from steerserve.core.errors import FeatureStoreError
from steerserve.store.schema import GLANCE_S, reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_COUNTER = slice(24, 28)
"""Place in SQLite's header of a number that changes with every transaction."""


class LabelMemory:
    """What is known of one file's labels. Any thread."""

    def __init__(self, path: Path) -> None:
        """Take the store's file; it is read when it is asked about."""
        self._path = path
        self._known: dict[int, str | None] = {}
        """Of the features that were asked for."""
        self._stamp_then: tuple[int, int, bytes] | None = None
        self._lock = threading.Lock()

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """Return the winning labels of those features that have one, as `FeatureStore.labels` says."""
        wanted = list(features)
        with self._lock:
            stamp = self._stamp()
            known = self._known if stamp == self._stamp_then else {}
            missing = [feature for feature in wanted if feature not in known]
            if missing:
                try:
                    known |= self._read(missing)
                except FeatureStoreError:
                    known = self._known | known
                else:
                    self._known, self._stamp_then = known, stamp
            found = {feature: known.get(feature) for feature in wanted}
        return {feature: label for feature, label in found.items() if label is not None}

    def _read(self, features: Sequence[int]) -> dict[int, str | None]:
        query = "SELECT value, text FROM json_each(?) LEFT JOIN labels ON feature = value AND is_best"
        with reading(self._path, timeout_s=GLANCE_S) as connection:
            return dict(connection.execute(query, (json.dumps(features),)))

    def _stamp(self) -> tuple[int, int, bytes]:
        """Return what changes whenever the file does."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                return status.st_ino, status.st_mtime_ns, file.read(_COUNTER.stop)[_COUNTER]
        except OSError:
            return 0, 0, b""

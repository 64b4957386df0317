"""Winning labels of a feature store that were looked up before, kept in memory until the file changes."""

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

_CHANGE_COUNTER = slice(24, 28)
"""Bytes of SQLite's file header that change with every transaction. Source: sqlite.org/fileformat.html, 1.3.7."""


class LabelCache:
    """Labels of one file. Any thread."""

    def __init__(self, path: Path) -> None:
        """Take the store's file; it is read when labels are looked up."""
        self._path = path
        self._labels: dict[int, str | None] = {}
        """Labels of the features that were looked up; None for one without a label."""
        self._stamp: tuple[int, int, bytes] | None = None
        """State of the file from which they were read."""
        self._lock = threading.Lock()

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """Return the winning labels of those features that have one, as `FeatureStore.labels` says."""
        requested = list(features)
        with self._lock:
            stamp = self._file_stamp()
            labels = self._labels if stamp == self._stamp else {}
            missing = [feature for feature in requested if feature not in labels]
            if missing:
                try:
                    labels |= self._read(missing)
                except FeatureStoreError:
                    labels = self._labels | labels
                else:
                    self._labels, self._stamp = labels, stamp
            return {feature: label for feature in requested if (label := labels.get(feature)) is not None}

    def _read(self, features: Sequence[int]) -> dict[int, str | None]:
        query = "SELECT value, text FROM json_each(?) LEFT JOIN labels ON feature = value AND is_best"
        with reading(self._path, timeout_s=GLANCE_S) as connection:
            return dict(connection.execute(query, (json.dumps(features),)))

    def _file_stamp(self) -> tuple[int, int, bytes]:
        """Return what changes whenever the file does."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                return status.st_ino, status.st_mtime_ns, file.read(_CHANGE_COUNTER.stop)[_CHANGE_COUNTER]
        except OSError:
            return 0, 0, b""

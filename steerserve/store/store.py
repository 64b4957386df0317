"""A feature store: what an interpretation recorded of one dictionary's features, in one SQLite file, searchable.

Any thread, several processes: every call opens the file for itself, so that the next call sees a file that was moved
over this one. A reader sees the file as it was before a transaction of a writer, or as it is after it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from steerserve.store.details import details_of
from steerserve.store.label_cache import LabelCache
from steerserve.store.labels import (
    all_labels,
    label_histories,
    label_history,
    merge_labels,
    put_label,
    put_newer_labels,
)
from steerserve.store.records import Calibration
from steerserve.store.rows import calibration_of, put_calibrations, put_record, search_hits, stored_feature
from steerserve.store.schema import BUSY_S, check_file, create_file, reading, unusable, writing
from steerserve.store.search import search
from steerserve.store.stored import StoreCounts, StoreMeta
from steerserve.store.vocabulary import Vocabulary

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from steerserve.store.records import FeatureRecord, Label
    from steerserve.store.search import Sort
    from steerserve.store.stored import SearchHit, StoredFeature, Subject

_BATCH = 256
"""Features that are held in memory while they are written; the first batch decides the order of the vocabulary."""
_HAS_RECORDS = "SELECT EXISTS (SELECT 1 FROM features WHERE num_active IS NOT NULL)"
_HAS_MEASUREMENTS = "SELECT EXISTS (SELECT 1 FROM features WHERE num_active IS NOT NULL OR dose IS NOT NULL)"


class FeatureStore:
    """One file. Nothing stays open between two calls."""

    def __init__(self, path: Path, *, is_outdated: bool = False) -> None:
        """Take a file that `open` has checked or `create` has made."""
        self.path = path
        self.is_outdated = is_outdated
        """Whether the file has an older version, whose records cannot be read."""
        self._labels = LabelCache(path)

    @classmethod
    def open(cls, path: Path, *, timeout_s: float = BUSY_S, migrates: bool = True) -> FeatureStore:
        """Open an existing store; one of an older version is brought up to date if `migrates`.

        Raises:
            FeatureStoreError: the file is not a feature store, is damaged, or has a newer version.
            StoreUnreachableError: it cannot be read now, or not within `timeout_s`, but may be sound.
        """
        is_current = check_file(path, timeout_s=timeout_s, migrates=migrates)
        store = cls(path, is_outdated=not is_current)
        store.meta(timeout_s=timeout_s)
        return store

    @classmethod
    def create(cls, path: Path, meta: StoreMeta) -> FeatureStore:
        """Create an empty store.

        Raises:
            FeatureStoreError: the file exists, or cannot be created.
        """
        if path.exists():
            raise unusable(path, "there is a file already")
        values = [(key, json.dumps(value)) for key, value in asdict(meta).items()]
        with create_file(path) as connection:
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
        return cls(path)

    def meta(self, *, timeout_s: float = BUSY_S) -> StoreMeta:
        """Return which dictionary the store describes, and what it was made from."""
        with reading(self.path, timeout_s=timeout_s) as connection:
            return _meta(connection, self.path)

    def describes(self, subject: Subject, *, timeout_s: float = BUSY_S) -> bool:
        """Tell whether the contents hold for a subject; if they are only labels, they hold for the weights alone."""
        with reading(self.path, timeout_s=timeout_s) as connection:
            meta = _meta(connection, self.path)
            if meta.dictionary_sha256 != subject.sha256:
                return False
            return subject.matches(meta) or not _is_true(connection, _HAS_MEASUREMENTS)

    def is_interpreted(self) -> bool:
        """Tell whether text was read for the store; it may hold only labels and calibrations."""
        with reading(self.path) as connection:
            return _is_true(connection, _HAS_RECORDS)

    def claim(self, subject: Subject) -> None:
        """Record the model and contents that the next measurements are for, if the store holds only labels.

        Raises:
            FeatureStoreError: the file cannot be written.
        """
        with reading(self.path) as connection:
            meta = _meta(connection, self.path)
            claimed = replace(meta, model=subject.model or meta.model, contents=subject.contents or meta.contents)
            if claimed == meta or _is_true(connection, _HAS_MEASUREMENTS):
                return
        with writing(self.path) as connection:
            if not _is_true(connection, _HAS_MEASUREMENTS):
                values = [("model", json.dumps(claimed.model)), ("contents", json.dumps(claimed.contents))]
                connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)

    def counts(self) -> StoreCounts:
        """Return how much the store holds."""
        with reading(self.path) as connection:
            row = connection.execute(
                "SELECT count(num_active), coalesce(sum(num_active > 0), 0), "
                "(SELECT count(*) FROM labels WHERE is_best), count(dose) FROM features"
            ).fetchone()
        return StoreCounts(*row)

    def write_features(self, records: Iterable[FeatureRecord], token_bytes: Callable[[int], bytes]) -> None:
        """Add the records of features that have none yet, all or none.

        Args:
            records: They may come from a generator; a few hundred are held at a time.
            token_bytes: Returns the bytes of a token id, as `Tokenizer.token_bytes`.

        Raises:
            FeatureStoreError: a feature has a record already, or the file cannot be written.
        """
        rest = iter(records)
        with writing(self.path) as connection:
            vocabulary = Vocabulary(connection, token_bytes)
            while batch := list(itertools.islice(rest, _BATCH)):
                vocabulary.add(token for record in batch for token in details_of(record).tokens())
                for record in batch:
                    put_record(connection, record, vocabulary)

    def write_calibrations(self, calibrations: Mapping[int, Calibration]) -> None:
        """Write calibrations, in place of older ones."""
        with writing(self.path) as connection:
            put_calibrations(connection, calibrations)

    def feature(self, feature: int) -> StoredFeature | None:
        """Return everything that is stored about a feature; None for nothing."""
        with self._reading() as connection:
            return stored_feature(connection, feature)

    def feature_numbers(self) -> list[int]:
        """Return the indexes of all features with a record, a calibration or a label, in order."""
        with reading(self.path) as connection:
            return [feature for (feature,) in connection.execute("SELECT feature FROM features ORDER BY feature")]

    def calibration(self, feature: int) -> Calibration | None:
        """Return a feature's calibration; None if it was not calibrated."""
        with reading(self.path) as connection:
            return calibration_of(connection, feature)

    def calibrations(self) -> dict[int, Calibration]:
        """Return the calibrations of all features that have one."""
        with reading(self.path) as connection:
            rows = connection.execute(
                "SELECT feature, dose, output_score FROM features WHERE dose IS NOT NULL"
            ).fetchall()
        return {feature: Calibration(dose, score) for feature, dose, score in rows}

    def maximum(self, feature: int) -> float | None:
        """Return a feature's largest activation, 0 for a dead feature; None if the store has no statistics."""
        with reading(self.path) as connection:
            row = connection.execute("SELECT maximum FROM features WHERE feature = ?", (feature,)).fetchone()
        return None if row is None or row[0] is None else float(row[0])

    def set_label(self, feature: int, label: Label | None) -> None:
        """Give a feature a label, in place of the one of the same origin; None removes a person's label.

        Raises:
            FeatureStoreError: the file cannot be written.
        """
        self.set_labels({feature: label})

    def set_labels(self, labels: Mapping[int, Label | None]) -> None:
        """Give features labels, all or none; a label without a time gets the present time.

        Raises:
            FeatureStoreError: the file cannot be written.
        """
        now = time.time()
        with writing(self.path) as connection:
            for feature, label in labels.items():
                put_label(connection, feature, label and replace(label, created=label.created or now))

    def take_newer_labels(self, labels: Mapping[int, Sequence[Label]]) -> int:
        """Give features those labels that are newer than all they ever had of the same origin, all or none.

        A label without a time counts as made now. Returns the number of features that got a label.

        Raises:
            FeatureStoreError: the file cannot be written.
        """
        now = time.time()
        timed = {
            feature: [replace(label, created=label.created or now) for label in offered]
            for feature, offered in labels.items()
        }
        with writing(self.path) as connection:
            return put_newer_labels(connection, timed)

    def label_histories(self) -> dict[int, tuple[Label, ...]]:
        """Return every label that any feature ever had, by feature, the newest first."""
        with reading(self.path) as connection:
            return label_histories(connection)

    def label_history(self, feature: int) -> tuple[Label, ...]:
        """Return every label that a feature ever had, the newest first."""
        with reading(self.path) as connection:
            return label_history(connection, feature)

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """Return the winning labels of those features that have one; an event loop may call it.

        Labels that were looked up before are in memory until the file changes. If another process is writing the file,
        a label may be missing or the previous one, and a later call returns the new one.
        """
        return self._labels.labels(features)

    def search(
        self, query: str = "", sort: Sort = "relevance", limit: int = 20, offset: int = 0
    ) -> tuple[list[SearchHit], bool]:
        """Return the features that match, and whether there are more; an empty query matches all.

        Raises:
            InvalidRequestError: the query has too many words.
        """
        with self._reading() as connection:
            matches = search(connection, query, sort, limit + 1, offset)
            return search_hits(connection, matches[:limit]), len(matches) > limit

    def carry_over(self, older: FeatureStore, *, labels_alone: bool = False) -> None:
        """Copy the calibrations of a store of the same dictionary, and its labels with their history.

        Automatic labels are copied as history only: those in this store were made from newer text.
        """
        calibrations = {} if labels_alone else older.calibrations()
        with reading(older.path) as connection:
            labels = all_labels(connection)
        with writing(self.path) as connection:
            own = {feature for (feature,) in connection.execute("SELECT feature FROM features WHERE dose IS NOT NULL")}
            put_calibrations(connection, {feature: calibrations[feature] for feature in calibrations.keys() - own})
            merge_labels(connection, labels)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with reading(self.path) as connection:
            try:
                yield connection
            except ValueError as error:
                raise unusable(self.path, f"a feature in it cannot be read ({error})") from error


def _is_true(connection: sqlite3.Connection, query: str) -> bool:
    return bool(connection.execute(query).fetchone()[0])


def _meta(connection: sqlite3.Connection, path: Path) -> StoreMeta:
    rows = connection.execute("SELECT key, value FROM meta").fetchall()
    try:
        values = {key: json.loads(value) for key, value in rows}
        return StoreMeta(**{**values, "sources": tuple(values["sources"])})
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(path, f"it does not say which dictionary it is about ({error!r})") from error

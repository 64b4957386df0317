"""A feature store: what is known of one dictionary's features, in one SQLite file that can be searched.

Any thread, several processes: every call opens the file for itself, so that a file moved over this one is seen by the
next call. Readers see what was there before a writer's transaction, or what is there after it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from steerserve.store.details import details_of
from steerserve.store.label_memory import LabelMemory
from steerserve.store.labels import (
    kept_labels,
    label_histories,
    label_history,
    put_label,
    put_newer_labels,
    take_labels,
)
from steerserve.store.records import Calibration
from steerserve.store.rows import calibration_of, found_features, put_calibrations, put_feature, stored_feature
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
"""Features that are held while they are written; from the first ones comes the order of the vocabulary."""
_IS_HARVESTED = "SELECT EXISTS (SELECT 1 FROM features WHERE num_active IS NOT NULL)"
_IS_MEASURED = "SELECT EXISTS (SELECT 1 FROM features WHERE num_active IS NOT NULL OR dose IS NOT NULL)"


class FeatureStore:
    """The file. It holds nothing open between two calls."""

    def __init__(self, path: Path) -> None:
        """Take a file that `open` has checked or `create` has made."""
        self.path = path
        self._labels = LabelMemory(path)

    @classmethod
    def open(cls, path: Path, *, timeout_s: float = BUSY_S) -> FeatureStore:
        """Open a store that is there; one of an older version is brought up to date.

        Raises:
            FeatureStoreError: it is no feature store, damaged, or of a newer version.
            StoreUnreachableError: it may be a sound one, but cannot be read now, or not within `timeout_s`.
        """
        check_file(path, timeout_s=timeout_s)
        store = cls(path)
        store.meta(timeout_s=timeout_s)
        return store

    @classmethod
    def create(cls, path: Path, meta: StoreMeta) -> FeatureStore:
        """Make an empty store.

        Raises:
            FeatureStoreError: there is a file, or it cannot be made.
        """
        if path.exists():
            raise unusable(path, "there is a file already")
        values = [(key, json.dumps(value)) for key, value in asdict(meta).items()]
        with create_file(path) as connection:
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
        return cls(path)

    def meta(self, *, timeout_s: float = BUSY_S) -> StoreMeta:
        """Return which dictionary the store is about, and what it was made from."""
        with reading(self.path, timeout_s=timeout_s) as connection:
            return _meta(connection, self.path)

    def describes(self, subject: Subject, *, timeout_s: float = BUSY_S) -> bool:
        """Tell whether what the store knows holds for a dictionary; labels alone hold for the weights as such."""
        with reading(self.path, timeout_s=timeout_s) as connection:
            meta = _meta(connection, self.path)
            if meta.dictionary_sha256 != subject.sha256:
                return False
            return subject.matches(meta) or not _holds(connection, _IS_MEASURED)

    def is_interpreted(self) -> bool:
        """Tell whether text was read for it: it may hold labels and calibrations alone."""
        with reading(self.path) as connection:
            return _holds(connection, _IS_HARVESTED)

    def claim(self, subject: Subject) -> None:
        """Write down what will be measured for, in a store that holds labels alone.

        Raises:
            FeatureStoreError: the file cannot be written.
        """
        with reading(self.path) as connection:
            meta = _meta(connection, self.path)
            wanted = replace(meta, model=subject.model or meta.model, contents=subject.contents or meta.contents)
            if wanted == meta or _holds(connection, _IS_MEASURED):
                return
        with writing(self.path) as connection:
            if not _holds(connection, _IS_MEASURED):
                values = [("model", json.dumps(wanted.model)), ("contents", json.dumps(wanted.contents))]
                connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)

    def counts(self) -> StoreCounts:
        """Return how much there is."""
        with reading(self.path) as connection:
            row = connection.execute(
                "SELECT count(num_active), coalesce(sum(num_active > 0), 0), "
                "(SELECT count(*) FROM labels WHERE is_best), count(dose) FROM features"
            ).fetchone()
        return StoreCounts(*row)

    def write_features(self, features: Iterable[FeatureRecord], token_bytes: Callable[[int], bytes]) -> None:
        """Add features that the store does not have yet, all or none.

        Args:
            features: They may come from a generator; a few hundred are held at a time.
            token_bytes: What a token id stands for, `Tokenizer.token_bytes`.

        Raises:
            FeatureStoreError: one is there already, or the file cannot be written.
        """
        rest = iter(features)
        with writing(self.path) as connection:
            vocabulary = Vocabulary(connection, token_bytes)
            while batch := list(itertools.islice(rest, _BATCH)):
                vocabulary.add(token for feature in batch for token in details_of(feature).tokens())
                for feature in batch:
                    put_feature(connection, feature, vocabulary)

    def write_calibrations(self, calibrations: Mapping[int, Calibration]) -> None:
        """Keep what features do when they are pushed, in place of what was known."""
        with writing(self.path) as connection:
            put_calibrations(connection, calibrations)

    def feature(self, feature: int) -> StoredFeature | None:
        """Return all that is known of a feature; None for nothing."""
        with self._reading() as connection:
            return stored_feature(connection, feature)

    def feature_numbers(self) -> list[int]:
        """Return all features that anything is known of, in order."""
        with reading(self.path) as connection:
            return [number for (number,) in connection.execute("SELECT feature FROM features ORDER BY feature")]

    def calibration(self, feature: int) -> Calibration | None:
        """Return what a feature does when it is pushed."""
        with reading(self.path) as connection:
            return calibration_of(connection, feature)

    def calibrations(self) -> dict[int, Calibration]:
        """Return what each feature does that was calibrated."""
        with reading(self.path) as connection:
            rows = connection.execute(
                "SELECT feature, dose, output_score FROM features WHERE dose IS NOT NULL"
            ).fetchall()
        return {feature: Calibration(dose, score) for feature, dose, score in rows}

    def maximum(self, feature: int) -> float | None:
        """Return a feature's largest activation; None where there was no harvest, 0 for a dead feature."""
        with reading(self.path) as connection:
            row = connection.execute("SELECT maximum FROM features WHERE feature = ?", (feature,)).fetchone()
        return None if row is None or row[0] is None else float(row[0])

    def set_label(self, feature: int, label: Label | None) -> None:
        """Give a feature a label, in place of the one of the same origin; None takes a person's away.

        Raises:
            FeatureStoreError: the file cannot be written.
        """
        self.set_labels({feature: label})

    def set_labels(self, labels: Mapping[int, Label | None]) -> None:
        """Give features labels, all or none; one without a time gets the present one.

        Raises:
            FeatureStoreError: the file cannot be written.
        """
        now = time.time()
        with writing(self.path) as connection:
            for feature, label in labels.items():
                put_label(connection, feature, label and replace(label, created=label.created or now))

    def take_newer_labels(self, labels: Mapping[int, Sequence[Label]]) -> int:
        """Give features those labels that are newer than all they ever had of the same origin, all or none.

        One without a time is as new as can be. Returns the number of features that got one.

        Raises:
            FeatureStoreError: the file cannot be written.
        """
        now = time.time()
        timed = {
            feature: [replace(label, created=label.created or now) for label in found]
            for feature, found in labels.items()
        }
        with writing(self.path) as connection:
            return put_newer_labels(connection, timed)

    def label_histories(self) -> dict[int, tuple[Label, ...]]:
        """Return every label that there ever was by feature, the newest first."""
        with reading(self.path) as connection:
            return label_histories(connection)

    def label_history(self, feature: int) -> tuple[Label, ...]:
        """Return every label that a feature ever had, the newest first."""
        with reading(self.path) as connection:
            return label_history(connection, feature)

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """Return the winning labels of those features that have one: an event loop may call it.

        What was asked for before is in memory until the file changes. What cannot be read within a moment, because
        another process is writing it, is as it was before, and shows in a later call.
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
            return found_features(connection, matches[:limit]), len(matches) > limit

    def carry_over(self, older: FeatureStore, *, labels_alone: bool = False) -> None:
        """Take the calibrations of a store of the same dictionary, and its labels with their history.

        Of the automatic labels only the history is taken: those here were made from newer text.
        """
        calibrations = {} if labels_alone else older.calibrations()
        with reading(older.path) as connection:
            labels = kept_labels(connection)
        with writing(self.path) as connection:
            own = {feature for (feature,) in connection.execute("SELECT feature FROM features WHERE dose IS NOT NULL")}
            put_calibrations(connection, {one: calibrations[one] for one in calibrations.keys() - own})
            take_labels(connection, labels)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with reading(self.path) as connection:
            try:
                yield connection
            except ValueError as error:
                raise unusable(self.path, f"a feature in it cannot be read ({error})") from error


def _holds(connection: sqlite3.Connection, query: str) -> bool:
    return bool(connection.execute(query).fetchone()[0])


def _meta(connection: sqlite3.Connection, path: Path) -> StoreMeta:
    rows = connection.execute("SELECT key, value FROM meta").fetchall()
    try:
        values = {key: json.loads(value) for key, value in rows}
        return StoreMeta(**{**values, "sources": tuple(values["sources"])})
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(path, f"it does not say what it is about ({error!r})") from error

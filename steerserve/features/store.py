"""A feature store: what is known of one dictionary's features, in one SQLite file that can be searched.

Any thread, several processes: every call opens the file for itself, so that a file moved over this one is seen by the
next call. Readers see what was there before a writer's transaction, or what is there after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING

import psutil

from steerserve.core.errors import FeatureStoreError
from steerserve.features.details import details_of
from steerserve.features.labels import kept_labels, label_history, put_label, take_labels
from steerserve.features.records import Calibration
from steerserve.features.rows import calibration_of, found_features, put_calibrations, put_feature, stored_feature
from steerserve.features.schema import check_file, compact, make_file, reading, told, turn_file, unusable, writing
from steerserve.features.search import search
from steerserve.features.stored import StoreCounts, StoreMeta
from steerserve.features.vocabulary import Vocabulary

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from steerserve.features.records import Feature, Label
    from steerserve.features.search import Sort
    from steerserve.features.stored import FoundFeature, StoredFeature

_BATCH = 256
"""Features that are held while they are written; from the first ones comes the order of the vocabulary."""
_COUNTER = slice(24, 28)
"""Place in SQLite's header of a number that changes with every transaction."""


class FeatureStore:
    """The file. It holds nothing open between two calls."""

    def __init__(self, path: Path) -> None:
        """Take a file that `open` has checked or `create` has made."""
        self.path = path
        self._labels: dict[int, str] = {}
        self._labels_stamp: tuple[int, bytes] | None = None
        self._labels_lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> FeatureStore:
        """Open a store that is there; one of an older version is brought up to date.

        Raises:
            FeatureStoreError: it is no feature store, damaged, or of a newer version.
        """
        check_file(path)
        store = cls(path)
        store.meta()
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
        with make_file(path) as connection:
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
        return cls(path)

    @classmethod
    @contextlib.contextmanager
    def replacing(cls, path: Path, meta: StoreMeta) -> Iterator[FeatureStore]:
        """Give an empty store to be filled; when the block ends well it takes the place of the one at `path`.

        Labels by people and language models and the calibrations of that one are kept. One that was about other
        weights gets another name. A block that fails, or a process that is killed, leaves the old one as it is.

        Raises:
            FeatureStoreError: it cannot be made, or something that is no feature store is in its place.
        """
        _remove_leftovers(path)
        if path.exists():
            cls.open(path)
        aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        with contextlib.ExitStack() as stack:
            stack.callback(aside.unlink, missing_ok=True)
            stack.callback(turn_file(aside).unlink, missing_ok=True)
            fresh = cls.create(aside, meta)
            yield fresh
            compact(aside)
            if path.exists():
                # Whoever sets a label meanwhile waits for this lock, and then finds the new file.
                stack.enter_context(writing(path))
                fresh.follow(cls(path))
            with told(path):
                aside.replace(path)

    def meta(self) -> StoreMeta:
        """Return which dictionary the store is about, and what it was made from."""
        with reading(self.path) as connection:
            return _meta(dict(connection.execute("SELECT key, value FROM meta")), self.path)

    def is_about(self, sha256: str) -> bool:
        """Tell whether the store is about the dictionary with these weights."""
        return self.meta().dictionary_sha256 == sha256

    def counts(self) -> StoreCounts:
        """Return how much there is."""
        with reading(self.path) as connection:
            row = connection.execute(
                "SELECT count(num_active), coalesce(sum(num_active > 0), 0), "
                "(SELECT count(*) FROM labels WHERE is_best), count(dose) FROM features"
            ).fetchone()
        return StoreCounts(*row)

    def write_features(self, features: Iterable[Feature], token_bytes: Callable[[int], bytes]) -> None:
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
            while batch := list(islice(rest, _BATCH)):
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

    def label_history(self, feature: int) -> tuple[Label, ...]:
        """Return every label that a feature ever had, the newest first."""
        with reading(self.path) as connection:
            return label_history(connection, feature)

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """Return the winning labels of those features that have one, from memory: an event loop may call it.

        What another process is writing at this moment shows in the next call.
        """
        with self._labels_lock:
            stamp = self._stamp()
            if stamp != self._labels_stamp:
                with contextlib.suppress(FeatureStoreError), reading(self.path, timeout_s=0) as connection:
                    self._labels = dict(connection.execute("SELECT feature, text FROM labels WHERE is_best"))
                    self._labels_stamp = stamp
            known = self._labels
        return {feature: known[feature] for feature in features if feature in known}

    def search(
        self, query: str = "", sort: Sort = "relevance", limit: int = 20, offset: int = 0
    ) -> tuple[list[FoundFeature], bool]:
        """Return the features that match, and whether there are more; an empty query matches all.

        Raises:
            InvalidRequestError: the query has too many words.
        """
        with self._reading() as connection:
            matches = search(connection, query, sort, limit + 1, offset)
            return found_features(connection, matches[:limit]), len(matches) > limit

    def carry_over(self, older: FeatureStore) -> None:
        """Take the calibrations of a store of the same dictionary, and its labels with their history.

        Of the automatic labels only the history is taken: those here were made from newer text.
        """
        calibrations = older.calibrations()
        with reading(older.path) as connection:
            labels = kept_labels(connection)
        with writing(self.path) as connection:
            own = {feature for (feature,) in connection.execute("SELECT feature FROM features WHERE dose IS NOT NULL")}
            put_calibrations(connection, {one: calibrations[one] for one in calibrations.keys() - own})
            take_labels(connection, labels)

    def follow(self, older: FeatureStore) -> None:
        """Take over from the store whose place this one takes; one of other weights is kept beside it."""
        about, path = older.meta().dictionary_sha256, older.path
        if self.is_about(about):
            self.carry_over(older)
        else:
            with told(path):
                path.replace(path.with_name(f"{path.stem}-{about[:12]}{path.suffix}"))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with reading(self.path) as connection:
            try:
                yield connection
            except ValueError as error:
                raise unusable(self.path, f"a feature in it cannot be read ({error})") from error

    def _stamp(self) -> tuple[int, bytes]:
        """Return what changes whenever the file does."""
        try:
            with self.path.open("rb") as file:
                return os.fstat(file.fileno()).st_ino, file.read(_COUNTER.stop)[_COUNTER]
        except OSError:
            return 0, b""


def _meta(rows: Mapping[str, str], path: Path) -> StoreMeta:
    try:
        values = {key: json.loads(value) for key, value in rows.items()}
        return StoreMeta(**{**values, "sources": tuple(values["sources"])})
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(path, f"it does not say what it is about ({error!r})") from error


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed left aside."""
    for file in (*path.parent.glob(f".{path.name}.*-*"), *path.parent.glob(f"..{path.name}.*-*.lock")):
        owner = file.name.lstrip(".").removeprefix(f"{path.name}.").partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            file.unlink(missing_ok=True)

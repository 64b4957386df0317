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
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psutil

from steerserve.core.errors import FeatureStoreError
from steerserve.features.details import details_of, pack_details, unpack_details
from steerserve.features.records import LABEL_ORIGINS, Activity, Calibration, Feature, Label
from steerserve.features.schema import check_file, compact, make_file, reading, told, unusable, writing
from steerserve.features.search import indexed, search_statement
from steerserve.features.stored import FoundFeature, StoreCounts, StoredFeature, StoreMeta

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from steerserve.features.details import Details
    from steerserve.features.records import Window
    from steerserve.features.search import Sort

AUTOMATIC_ORIGINS = ("promoted", "peak", "words")
"""Labels that a harvest makes anew; the others outlive it."""
_PEAK_REACH = 2
"""Tokens on each side of a window's peak that are searched as what the feature fires on."""
_COUNTER = slice(24, 28)
"""Place in SQLite's header of a number that changes with every transaction."""
_LABEL_COLUMNS = "text, origin, score, created, author"
_BEST_FIRST = f"CASE origin {' '.join(f'WHEN {name!r} THEN {place}' for place, name in enumerate(LABEL_ORIGINS))} END"


class FeatureStore:
    """The file. It holds nothing open between two calls."""

    def __init__(self, path: Path) -> None:
        """Take a file that `open` has checked or `create` has made."""
        self.path = path
        self._labels: dict[int, str] = {}
        self._labels_of: tuple[int, bytes] | None = None
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
        make_file(path)
        store = cls(path)
        with writing(path) as connection:
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in asdict(meta).items()]
            )
        return store

    @classmethod
    @contextlib.contextmanager
    def replacing(cls, path: Path, meta: StoreMeta) -> Iterator[FeatureStore]:
        """Give an empty store to be filled; when the block ends well it takes the place of the one at `path`.

        Labels by people and language models and the calibrations of that one are kept. A block that fails, or a
        process that is killed, leaves the old one as it is.

        Raises:
            FeatureStoreError: it cannot be made, or something that is no feature store is in its place.
        """
        _remove_leftovers(path)
        aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        with contextlib.ExitStack() as stack:
            stack.callback(aside.unlink, missing_ok=True)
            fresh = cls.create(aside, meta)
            yield fresh
            if path.exists():
                check_file(path)
                # Whoever sets a label meanwhile waits for this lock, and then finds the new file.
                stack.enter_context(writing(path))
                fresh.carry_over(cls(path))
            compact(aside)
            with told(path):
                aside.replace(path)

    def meta(self) -> StoreMeta:
        """Return which dictionary the store is about, and what it was made from."""
        with self._reading() as connection:
            return _meta(dict(connection.execute("SELECT key, value FROM meta")), self.path)

    def counts(self) -> StoreCounts:
        """Return how much there is."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM features), (SELECT count(*) FROM features WHERE num_active > 0), "
                "(SELECT count(*) FROM labels WHERE is_best), (SELECT count(*) FROM calibrations)"
            ).fetchone()
        return StoreCounts(*row)

    def write_features(self, features: Iterable[Feature], token_bytes: Callable[[int], bytes]) -> None:
        """Add features that the store does not have yet, all or none.

        Args:
            features: They may come from a generator; one is held at a time.
            token_bytes: What a token id stands for, `Tokenizer.token_bytes`.

        Raises:
            FeatureStoreError: one is there already, or the file cannot be written.
        """
        with writing(self.path) as connection:
            known: dict[int, bytes] = dict(connection.execute("SELECT token_id, bytes FROM tokens"))
            for feature in features:
                details = details_of(feature)
                fresh = {token_id: token_bytes(token_id) for token_id in details.token_ids() - known.keys()}
                known |= fresh
                connection.executemany("INSERT INTO tokens VALUES (?, ?)", fresh.items())
                _insert_feature(connection, feature, details, known)

    def write_calibrations(self, calibrations: Mapping[int, Calibration]) -> None:
        """Keep what features do when they are pushed, in place of what was known."""
        with writing(self.path) as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO calibrations VALUES (?, ?, ?)",
                [(feature, found.dose, found.output_score) for feature, found in calibrations.items()],
            )

    def feature(self, feature: int) -> StoredFeature | None:
        """Return all that is known of a feature; None for nothing."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT num_active, maximum, mean, content FROM features JOIN details USING (feature) WHERE feature = ?",
                (feature,),
            ).fetchone()
            labels = _current_labels(connection, feature)
            calibration = _calibration(connection, feature)
            if row is None and not labels and calibration is None:
                return None
            harvested, texts = None, dict[int, bytes]()
            if row is not None:
                details = self._unpack(row[3])
                num_tokens = _num_tokens(connection)
                harvested = _feature(feature, num_tokens, row, details, labels)
                texts = _token_bytes(connection, details.token_ids())
        return StoredFeature(feature, harvested, calibration, labels[0] if labels else None, labels, texts)

    def features(self) -> Iterator[StoredFeature]:
        """Go through all features that anything is known of, in order."""
        with self._reading() as connection:
            query = "SELECT feature FROM features UNION SELECT feature FROM labels UNION SELECT feature FROM calibrations"
            numbers = [number for (number,) in connection.execute(f"{query} ORDER BY feature")]
        for number in numbers:
            if (found := self.feature(number)) is not None:
                yield found

    def calibration(self, feature: int) -> Calibration | None:
        """Return what a feature does when it is pushed."""
        with self._reading() as connection:
            return _calibration(connection, feature)

    def calibrations(self) -> dict[int, Calibration]:
        """Return all of them."""
        with self._reading() as connection:
            rows = connection.execute("SELECT feature, dose, output_score FROM calibrations").fetchall()
        return {feature: Calibration(dose, score) for feature, dose, score in rows}

    def maximum(self, feature: int) -> float | None:
        """Return a feature's largest activation; None where there was no harvest, 0 for a dead feature."""
        with self._reading() as connection:
            row = connection.execute("SELECT maximum FROM features WHERE feature = ?", (feature,)).fetchone()
        return None if row is None else float(row[0])

    def set_label(self, feature: int, label: Label | None) -> None:
        """Give a feature a label, in place of the one of the same origin; None takes a person's away."""
        self.set_labels({feature: label})

    def set_labels(self, labels: Mapping[int, Label | None]) -> None:
        """Give features labels, all or none."""
        with writing(self.path) as connection:
            for feature, label in labels.items():
                _set_label(connection, feature, label)

    def label_history(self, feature: int) -> tuple[Label, ...]:
        """Return every label that a feature ever had, the newest first."""
        with self._reading() as connection:
            query = f"SELECT {_LABEL_COLUMNS} FROM labels WHERE feature = ? ORDER BY number DESC"  # noqa: S608 a constant
            return tuple(Label(*row) for row in connection.execute(query, (feature,)))

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """Return the winning labels of those features that have one, from memory: an event loop may call it.

        What another process is writing at this moment shows in the next call.
        """
        with self._labels_lock:
            stamp = self._stamp()
            if stamp != self._labels_of:
                with contextlib.suppress(FeatureStoreError), reading(self.path, timeout_s=0) as connection:
                    self._labels = dict(connection.execute("SELECT rowid, label FROM label_index"))
                    self._labels_of = stamp
            known = self._labels
        return {feature: known[feature] for feature in features if feature in known}

    def search(
        self, query: str = "", sort: Sort = "relevance", limit: int = 20, offset: int = 0
    ) -> tuple[list[FoundFeature], bool]:
        """Return the features that match, and whether there are more; an empty query matches all.

        Raises:
            InvalidRequestError: the query has too many words.
        """
        statement = search_statement(query, sort, limit + 1, offset)
        with self._reading() as connection:
            rows = connection.execute(statement.sql, statement.values).fetchall()
            num_tokens = _num_tokens(connection)
            found = [self._found(connection, row, num_tokens) for row in rows[:limit]]
        return found, len(rows) > limit

    def carry_over(self, older: FeatureStore) -> None:
        """Take the calibrations of a store of the same dictionary, and its labels with their history.

        Of the automatic labels only the history is taken: those here were made from newer text.
        """
        with older._reading() as connection:  # noqa: SLF001 another object of this class
            calibrations = connection.execute("SELECT feature, dose, output_score FROM calibrations").fetchall()
            labels = connection.execute(
                f"SELECT feature, is_current, {_LABEL_COLUMNS} FROM labels ORDER BY number"  # noqa: S608 a constant
            ).fetchall()
        with writing(self.path) as connection:
            connection.executemany("INSERT OR IGNORE INTO calibrations VALUES (?, ?, ?)", calibrations)
            for feature, is_current, *columns in labels:
                keeps = bool(is_current) and columns[1] not in AUTOMATIC_ORIGINS
                _insert_label(connection, feature, Label(*columns), is_current=keeps)
            for feature in {row[0] for row in labels}:
                _choose_best(connection, feature)

    def _found(self, connection: sqlite3.Connection, row: tuple[Any, ...], num_tokens: int) -> FoundFeature:
        feature, relevance, num_active, maximum, dose, output_score = row
        labels = _current_labels(connection, feature)
        stored = connection.execute("SELECT content FROM details WHERE feature = ?", (feature,)).fetchone()
        details = None if stored is None else self._unpack(stored[0])
        example = details.windows[0] if details is not None and details.windows else None
        promoted = tuple(token_id for token_id, _ in details.promoted) if details is not None else ()
        return FoundFeature(
            feature=feature,
            label=labels[0] if labels else None,
            density=None if num_active is None else num_active / max(num_tokens, 1),
            maximum=maximum,
            calibration=None if dose is None else Calibration(dose, output_score),
            relevance=relevance,
            example=example,
            promoted=promoted,
            token_bytes=_token_bytes(connection, {*promoted, *(example.token_ids if example is not None else ())}),
        )

    def _reading(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return reading(self.path)

    def _unpack(self, content: bytes) -> Details:
        try:
            return unpack_details(content)
        except ValueError as error:
            raise unusable(self.path, f"a feature in it cannot be read ({error})") from error

    def _stamp(self) -> tuple[int, bytes]:
        try:
            with self.path.open("rb") as file:
                return os.fstat(file.fileno()).st_ino, file.read(_COUNTER.stop)[_COUNTER]
        except OSError:
            return 0, b""


def _insert_feature(
    connection: sqlite3.Connection, feature: Feature, details: Details, known: Mapping[int, bytes]
) -> None:
    activity = feature.activity
    connection.execute(
        "INSERT INTO features VALUES (?, ?, ?, ?)",
        (feature.feature, activity.num_active, activity.maximum, activity.mean),
    )
    connection.execute("INSERT INTO details VALUES (?, ?)", (feature.feature, pack_details(details)))
    named = [token_id for pairs in (feature.peak_tokens, feature.promoted) for token_id, _ in pairs]
    tokens = " ".join(_text([token_id], known) for token_id in named)
    peaks = " ".join(_text(_near_peak(window), known) for window in feature.windows)
    texts = " ".join(_text(window.token_ids, known) for window in feature.windows)
    connection.execute(
        "INSERT INTO peak_index (rowid, tokens, peaks) VALUES (?, ?, ?)",
        (feature.feature, indexed(tokens), indexed(peaks)),
    )
    connection.execute("INSERT INTO text_index (rowid, text) VALUES (?, ?)", (feature.feature, indexed(texts)))
    for label in feature.labels:
        _set_label(connection, feature.feature, label)


def _near_peak(window: Window) -> Sequence[int]:
    return window.token_ids[max(0, window.peak - _PEAK_REACH) : window.peak + _PEAK_REACH + 1]


def _text(token_ids: Iterable[int], known: Mapping[int, bytes]) -> str:
    return b"".join(known[token_id] for token_id in token_ids).decode("utf-8", errors="replace")


def _set_label(connection: sqlite3.Connection, feature: int, label: Label | None) -> None:
    origin = label.origin if label is not None else "person"
    connection.execute(
        "UPDATE labels SET is_current = 0, is_best = 0 WHERE feature = ? AND origin = ?", (feature, origin)
    )
    if label is not None:
        _insert_label(connection, feature, label, is_current=True)
    _choose_best(connection, feature)


def _insert_label(connection: sqlite3.Connection, feature: int, label: Label, *, is_current: bool) -> None:
    connection.execute(
        f"INSERT INTO labels (feature, {_LABEL_COLUMNS}, is_current, is_best) "  # noqa: S608 a constant
        "VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
        (feature, label.text, label.origin, label.score, label.created or time.time(), label.author, is_current),
    )


def _choose_best(connection: sqlite3.Connection, feature: int) -> None:
    connection.execute("UPDATE labels SET is_best = 0 WHERE feature = ? AND is_best", (feature,))
    connection.execute("DELETE FROM label_index WHERE rowid = ?", (feature,))
    best = connection.execute(
        "SELECT number, text FROM labels WHERE feature = ? AND is_current "  # noqa: S608 a constant
        f"ORDER BY {_BEST_FIRST}, number DESC LIMIT 1",
        (feature,),
    ).fetchone()
    if best is not None:
        connection.execute("UPDATE labels SET is_best = 1 WHERE number = ?", (best[0],))
        connection.execute("INSERT INTO label_index (rowid, label) VALUES (?, ?)", (feature, best[1]))


def _current_labels(connection: sqlite3.Connection, feature: int) -> tuple[Label, ...]:
    rows = connection.execute(
        f"SELECT {_LABEL_COLUMNS} FROM labels WHERE feature = ? AND is_current "  # noqa: S608 constants
        f"ORDER BY {_BEST_FIRST}, number DESC",
        (feature,),
    )
    return tuple(Label(*row) for row in rows)


def _calibration(connection: sqlite3.Connection, feature: int) -> Calibration | None:
    query = "SELECT dose, output_score FROM calibrations WHERE feature = ?"
    row = connection.execute(query, (feature,)).fetchone()
    return None if row is None else Calibration(*row)


def _num_tokens(connection: sqlite3.Connection) -> int:
    (value,) = connection.execute("SELECT value FROM meta WHERE key = 'num_tokens'").fetchone()
    return int(json.loads(value))


def _token_bytes(connection: sqlite3.Connection, token_ids: Iterable[int]) -> dict[int, bytes]:
    query = "SELECT token_id, bytes FROM tokens JOIN json_each(?) ON token_id = value"
    return dict(connection.execute(query, (json.dumps(sorted(token_ids)),)))


def _feature(
    feature: int, num_tokens: int, row: tuple[Any, ...], details: Details, labels: tuple[Label, ...]
) -> Feature:
    num_active, maximum, mean, _ = row
    return Feature(
        feature=feature,
        activity=Activity(num_tokens, num_active, maximum, mean, details.quantiles, details.histogram),
        windows=details.windows,
        peak_tokens=details.peak_tokens,
        promoted=details.promoted,
        suppressed=details.suppressed,
        neighbours=details.neighbours,
        labels=tuple(label for label in labels if label.origin in AUTOMATIC_ORIGINS),
    )


def _meta(rows: Mapping[str, str], path: Path) -> StoreMeta:
    try:
        values = {key: json.loads(value) for key, value in rows.items()}
        return StoreMeta(**{**values, "sources": tuple(values["sources"])})
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(path, f"it does not say what it is about ({error!r})") from error


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed left aside."""
    for file in path.parent.glob(f".{path.name}.*-*"):
        owner = file.name.removeprefix(f".{path.name}.").partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            file.unlink(missing_ok=True)

"""Labels in a feature store: one current label of each origin, a winner among them, and all that there ever were."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from steerserve.core.literals import LABEL_ORIGINS
from steerserve.store.records import Label
from steerserve.store.search import indexed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

AUTOMATIC_ORIGINS = ("promoted", "peak", "words")
"""Labels that a harvest makes anew; the others outlive it."""
_COLUMNS = "text, origin, score, created, author"
_COLUMNS_ALIKE = " AND ".join(f"{column} IS ?" for column in _COLUMNS.split(", "))
_PLACES = " ".join(f"WHEN {origin!r} THEN {place}" for place, origin in enumerate(LABEL_ORIGINS))
_NEWEST_FIRST = "created DESC, number DESC"
_BEST_FIRST = f"CASE origin {_PLACES} ELSE {len(LABEL_ORIGINS)} END, number DESC"


def put_label(connection: sqlite3.Connection, feature: int, label: Label | None) -> None:
    """Give a feature a label, in place of the one of the same origin; None takes a person's away."""
    origin = label.origin if label is not None else "person"
    _outdate(connection, feature, origin)
    if label is not None:
        _insert(connection, feature, label, is_current=True)
    _choose_best(connection, feature)


def put_newer_labels(connection: sqlite3.Connection, labels: Mapping[int, Sequence[Label]]) -> int:
    """Give features those labels that are newer than all they ever had of the same origin; returns to how many."""
    num_given = 0
    for feature, found in labels.items():
        query = "SELECT origin, max(created) FROM labels WHERE feature = ? GROUP BY origin"
        newest: dict[str, float] = dict(connection.execute(query, (feature,)))
        newer = [label for label in found if label.origin not in newest or label.created > newest[label.origin]]
        for label in sorted(newer, key=lambda label: label.created):
            put_label(connection, feature, label)
        num_given += bool(newer)
    return num_given


def current_labels(connection: sqlite3.Connection, feature: int) -> tuple[Label, ...]:
    """Return the current label of each origin, the winner first."""
    query = f"SELECT {_COLUMNS} FROM labels WHERE feature = ? AND is_current ORDER BY {_BEST_FIRST}"  # noqa: S608
    return tuple(Label(*row) for row in connection.execute(query, (feature,)))


def label_history(connection: sqlite3.Connection, feature: int) -> tuple[Label, ...]:
    """Return every label that a feature ever had, the newest first."""
    query = f"SELECT {_COLUMNS} FROM labels WHERE feature = ? ORDER BY {_NEWEST_FIRST}"  # noqa: S608 a constant
    return tuple(Label(*row) for row in connection.execute(query, (feature,)))


def label_histories(connection: sqlite3.Connection) -> dict[int, tuple[Label, ...]]:
    """Return every label that there ever was by feature, the newest first."""
    found = defaultdict[int, list[Label]](list)
    query = f"SELECT feature, {_COLUMNS} FROM labels ORDER BY {_NEWEST_FIRST}"  # noqa: S608 a constant
    for feature, *columns in connection.execute(query):
        found[feature].append(Label(*columns))
    return {feature: tuple(labels) for feature, labels in found.items()}


def kept_labels(connection: sqlite3.Connection) -> list[tuple[int, bool, Label]]:
    """Return all labels with their features in the order in which they were given, and whether they outlive a harvest.

    Automatic ones and those that were replaced do not: they are history.
    """
    query = f"SELECT feature, is_current, {_COLUMNS} FROM labels ORDER BY number"  # noqa: S608 a constant
    found = [(feature, is_current, Label(*columns)) for feature, is_current, *columns in connection.execute(query)]
    return [(feature, bool(now) and label.origin not in AUTOMATIC_ORIGINS, label) for feature, now, label in found]


def take_labels(connection: sqlite3.Connection, labels: Iterable[tuple[int, bool, Label]]) -> None:
    """Add what `kept_labels` gave for another store: of two labels of one origin the newer one counts.

    A label that both have counts where it does in the other store: there it may have been taken away.
    """
    touched = set()
    query = f"SELECT number FROM labels WHERE feature = ? AND {_COLUMNS_ALIKE}"  # noqa: S608 a constant
    for feature, is_kept, label in labels:
        touched.add(feature)
        newest = _current_of(connection, feature, label.origin)
        same = connection.execute(query, (feature, *_values(label))).fetchone()
        if same is None:
            counts = is_kept and (newest is None or newest[1] <= label.created)
            if counts:
                _outdate(connection, feature, label.origin)
            _insert(connection, feature, label, is_current=counts)
        elif label.origin not in AUTOMATIC_ORIGINS:
            counts = is_kept and newest is None
            if counts or (not is_kept and newest is not None and newest[0] == same[0]):
                connection.execute("UPDATE labels SET is_current = ? WHERE number = ?", (counts, same[0]))
    for feature in touched:
        _choose_best(connection, feature)


def _current_of(connection: sqlite3.Connection, feature: int, origin: str) -> tuple[int, float] | None:
    query = "SELECT number, created FROM labels WHERE feature = ? AND origin = ? AND is_current"
    found: tuple[int, float] | None = connection.execute(query, (feature, origin)).fetchone()
    return found


def _outdate(connection: sqlite3.Connection, feature: int, origin: str) -> None:
    connection.execute("UPDATE labels SET is_current = 0 WHERE feature = ? AND origin = ?", (feature, origin))


def _values(label: Label) -> tuple[str, str, float | None, float, str | None]:
    return label.text, label.origin, label.score, label.created, label.author


def _insert(connection: sqlite3.Connection, feature: int, label: Label, *, is_current: bool) -> None:
    connection.execute(
        f"INSERT INTO labels (feature, {_COLUMNS}, is_current, is_best) VALUES (?, ?, ?, ?, ?, ?, ?, 0)",  # noqa: S608
        (feature, *_values(label), is_current),
    )


def _choose_best(connection: sqlite3.Connection, feature: int) -> None:
    connection.execute("UPDATE labels SET is_best = 0 WHERE feature = ? AND is_best", (feature,))
    connection.execute("DELETE FROM label_index WHERE rowid = ?", (feature,))
    query = f"SELECT number, text FROM labels WHERE feature = ? AND is_current ORDER BY {_BEST_FIRST} LIMIT 1"  # noqa: S608
    best = connection.execute(query, (feature,)).fetchone()
    if best is None:
        connection.execute("DELETE FROM features WHERE feature = ? AND num_active IS NULL AND dose IS NULL", (feature,))
    else:
        connection.execute("INSERT OR IGNORE INTO features (feature) VALUES (?)", (feature,))
        connection.execute("UPDATE labels SET is_best = 1 WHERE number = ?", (best[0],))
        connection.execute("INSERT INTO label_index (rowid, label) VALUES (?, ?)", (feature, indexed(best[1])))

"""Labels in a feature store: one current label of each origin, a winner among them, and all that there ever were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerserve.features.records import LABEL_ORIGINS, Label
from steerserve.features.search import indexed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

AUTOMATIC_ORIGINS = ("promoted", "peak", "words")
"""Labels that a harvest makes anew; the others outlive it."""
_COLUMNS = "text, origin, score, created, author"
_PLACES = " ".join(f"WHEN {origin!r} THEN {place}" for place, origin in enumerate(LABEL_ORIGINS))
_BEST_FIRST = f"CASE origin {_PLACES} ELSE {len(LABEL_ORIGINS)} END, number DESC"


def put_label(connection: sqlite3.Connection, feature: int, label: Label | None) -> None:
    """Give a feature a label, in place of the one of the same origin; None takes a person's away."""
    origin = label.origin if label is not None else "person"
    connection.execute("UPDATE labels SET is_current = 0 WHERE feature = ? AND origin = ?", (feature, origin))
    if label is not None:
        _insert(connection, feature, label, is_current=True)
    _choose_best(connection, feature)


def current_labels(connection: sqlite3.Connection, feature: int) -> tuple[Label, ...]:
    """Return the current label of each origin, the winner first."""
    query = f"SELECT {_COLUMNS} FROM labels WHERE feature = ? AND is_current ORDER BY {_BEST_FIRST}"  # noqa: S608
    return tuple(Label(*row) for row in connection.execute(query, (feature,)))


def label_history(connection: sqlite3.Connection, feature: int) -> tuple[Label, ...]:
    """Return every label that a feature ever had, the newest first."""
    query = f"SELECT {_COLUMNS} FROM labels WHERE feature = ? ORDER BY number DESC"  # noqa: S608 a constant
    return tuple(Label(*row) for row in connection.execute(query, (feature,)))


def kept_labels(connection: sqlite3.Connection) -> list[tuple[int, bool, Label]]:
    """Return all labels with their features in the order in which they were given, and whether they outlive a harvest.

    Automatic ones and those that were replaced do not: they are history.
    """
    query = f"SELECT feature, is_current, {_COLUMNS} FROM labels ORDER BY number"  # noqa: S608 a constant
    found = [(feature, is_current, Label(*columns)) for feature, is_current, *columns in connection.execute(query)]
    return [(feature, bool(now) and label.origin not in AUTOMATIC_ORIGINS, label) for feature, now, label in found]


def take_labels(connection: sqlite3.Connection, labels: Iterable[tuple[int, bool, Label]]) -> None:
    """Add what `kept_labels` gave for another store."""
    touched = set()
    for feature, is_kept, label in labels:
        touched.add(feature)
        _insert(connection, feature, label, is_current=is_kept)
    for feature in touched:
        _choose_best(connection, feature)


def _insert(connection: sqlite3.Connection, feature: int, label: Label, *, is_current: bool) -> None:
    connection.execute(
        f"INSERT INTO labels (feature, {_COLUMNS}, is_current, is_best) VALUES (?, ?, ?, ?, ?, ?, ?, 0)",  # noqa: S608
        (feature, label.text, label.origin, label.score, label.created, label.author, is_current),
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

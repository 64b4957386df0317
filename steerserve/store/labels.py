"""Labels in a feature store: one current label of each origin, the winner of these, and the history of all labels."""

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
"""Origins of the labels that an interpretation makes anew; labels of other origins outlive it."""
_COLUMNS = "text, origin, score, created, author"
_SAME_COLUMNS = " AND ".join(f"{column} IS ?" for column in _COLUMNS.split(", "))
_NEWEST_FIRST = "created DESC, number DESC"
_RANKS = " ".join(f"WHEN {origin!r} THEN {rank}" for rank, origin in enumerate(LABEL_ORIGINS))
_BEST_FIRST = f"CASE origin {_RANKS} ELSE {len(LABEL_ORIGINS)} END, number DESC"


def put_label(connection: sqlite3.Connection, feature: int, label: Label | None) -> None:
    """Give a feature a label, in place of the one of the same origin; None removes a person's label."""
    origin = label.origin if label is not None else "person"
    _retire(connection, feature, origin)
    if label is not None:
        _insert(connection, feature, label, is_current=True)
    _choose_best(connection, feature)


def put_newer_labels(connection: sqlite3.Connection, labels: Mapping[int, Sequence[Label]]) -> int:
    """Give features those labels that are newer than all they ever had of the same origin.

    Returns:
        The number of features that got a label.
    """
    num_labelled = 0
    for feature, offered in labels.items():
        query = "SELECT origin, max(created) FROM labels WHERE feature = ? GROUP BY origin"
        newest: dict[str, float] = dict(connection.execute(query, (feature,)))
        newer = [label for label in offered if label.origin not in newest or label.created > newest[label.origin]]
        for label in sorted(newer, key=lambda label: label.created):
            put_label(connection, feature, label)
        num_labelled += bool(newer)
    return num_labelled


def current_labels(connection: sqlite3.Connection, feature: int) -> tuple[Label, ...]:
    """Return the current label of each origin, the winner first."""
    query = f"SELECT {_COLUMNS} FROM labels WHERE feature = ? AND is_current ORDER BY {_BEST_FIRST}"  # noqa: S608
    return tuple(Label(*row) for row in connection.execute(query, (feature,)))


def label_history(connection: sqlite3.Connection, feature: int) -> tuple[Label, ...]:
    """Return every label that a feature ever had, the newest first."""
    query = f"SELECT {_COLUMNS} FROM labels WHERE feature = ? ORDER BY {_NEWEST_FIRST}"  # noqa: S608 a constant
    return tuple(Label(*row) for row in connection.execute(query, (feature,)))


def label_histories(connection: sqlite3.Connection) -> dict[int, tuple[Label, ...]]:
    """Return every label that any feature ever had, by feature, the newest first."""
    histories = defaultdict[int, list[Label]](list)
    query = f"SELECT feature, {_COLUMNS} FROM labels ORDER BY {_NEWEST_FIRST}"  # noqa: S608 a constant
    for feature, *columns in connection.execute(query):
        histories[feature].append(Label(*columns))
    return {feature: tuple(labels) for feature, labels in histories.items()}


def all_labels(connection: sqlite3.Connection) -> list[tuple[int, bool, Label]]:
    """Return feature, whether it is kept, and label of all labels, in the order in which they were given.

    A label is kept by the next interpretation if it is current and not automatic; the others are history.
    """
    query = f"SELECT feature, is_current, {_COLUMNS} FROM labels ORDER BY number"  # noqa: S608 a constant
    rows = [(feature, is_current, Label(*columns)) for feature, is_current, *columns in connection.execute(query)]
    return [
        (feature, bool(is_current) and label.origin not in AUTOMATIC_ORIGINS, label)
        for feature, is_current, label in rows
    ]


def merge_labels(connection: sqlite3.Connection, labels: Iterable[tuple[int, bool, Label]]) -> None:
    """Add the labels that `all_labels` returned for another store: of two labels of one origin the newer is current.

    A label that both stores have is current here if it is kept there: somebody may have removed it there.
    """
    touched = set()
    query = f"SELECT number FROM labels WHERE feature = ? AND {_SAME_COLUMNS}"  # noqa: S608 a constant
    for feature, is_kept, label in labels:
        touched.add(feature)
        current = _current_of(connection, feature, label.origin)
        same = connection.execute(query, (feature, *_values(label))).fetchone()
        if same is None:
            is_newest = is_kept and (current is None or current[1] <= label.created)
            if is_newest:
                _retire(connection, feature, label.origin)
            _insert(connection, feature, label, is_current=is_newest)
        elif label.origin not in AUTOMATIC_ORIGINS:
            is_restored = is_kept and current is None
            if is_restored or (not is_kept and current is not None and current[0] == same[0]):
                connection.execute("UPDATE labels SET is_current = ? WHERE number = ?", (is_restored, same[0]))
    for feature in touched:
        _choose_best(connection, feature)


def _current_of(connection: sqlite3.Connection, feature: int, origin: str) -> tuple[int, float] | None:
    """Return number and time of a feature's current label of one origin."""
    query = "SELECT number, created FROM labels WHERE feature = ? AND origin = ? AND is_current"
    row: tuple[int, float] | None = connection.execute(query, (feature, origin)).fetchone()
    return row


def _retire(connection: sqlite3.Connection, feature: int, origin: str) -> None:
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

"""Features in the tables of a feature store: written to tables and indexes, and read back.

Raises ValueError for contents that cannot be read; the store reports it with the name of its file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from steerserve.store.details import Details, details_of, pack_details, unpack_details
from steerserve.store.labels import AUTOMATIC_ORIGINS, current_labels, put_label
from steerserve.store.records import Activity, Calibration, FeatureRecord
from steerserve.store.search import indexed
from steerserve.store.stored import SearchHit, StoredFeature
from steerserve.store.vocabulary import tokens_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from steerserve.store.records import Label
    from steerserve.store.search import Match
    from steerserve.store.vocabulary import Vocabulary

_PEAK_REACH = 2
"""Tokens on each side of a snippet's peak that are searched as tokens that the feature fires on."""


def put_record(connection: sqlite3.Connection, record: FeatureRecord, vocabulary: Vocabulary) -> None:
    """Write the record of a feature; `vocabulary` has numbered its tokens."""
    feature, activity = record.feature, record.activity
    connection.execute(
        "INSERT INTO features (feature, num_active, maximum, mean) VALUES (?, ?, ?, ?) ON CONFLICT (feature) DO UPDATE "
        "SET num_active = excluded.num_active, maximum = excluded.maximum, mean = excluded.mean",
        (feature, activity.num_active, activity.maximum, activity.mean),
    )
    head, rest = details_of(record).renumbered(vocabulary.number_of).split()
    connection.execute("INSERT INTO heads VALUES (?, ?)", (feature, pack_details(head)))
    connection.execute("INSERT INTO details VALUES (?, ?)", (feature, pack_details(rest)))
    single = [token_id for pairs in (record.peak_tokens, record.promoted) for token_id, _ in pairs]
    near_peaks = [
        snippet.token_ids[max(0, snippet.peak - _PEAK_REACH) : snippet.peak + _PEAK_REACH + 1]
        for snippet in record.snippets
    ]
    tokens = indexed(" ".join(vocabulary.text([token_id]) for token_id in single))
    peaks = indexed(" ".join(map(vocabulary.text, near_peaks)))
    texts = indexed(" ".join(vocabulary.text(snippet.token_ids) for snippet in record.snippets))
    connection.execute("INSERT INTO peak_index (rowid, tokens, peaks) VALUES (?, ?, ?)", (feature, tokens, peaks))
    # Everything that can match is in this index, so that it alone tells which features match.
    connection.execute("INSERT INTO text_index (rowid, text) VALUES (?, ?)", (feature, f"{texts} {tokens}"))
    for label in record.labels:
        put_label(connection, feature, label)


def put_calibrations(connection: sqlite3.Connection, calibrations: Mapping[int, Calibration]) -> None:
    """Write calibrations, in place of older ones."""
    connection.executemany(
        "INSERT INTO features (feature, dose, output_score) VALUES (?, ?, ?) ON CONFLICT (feature) DO UPDATE "
        "SET dose = excluded.dose, output_score = excluded.output_score",
        [(feature, calibration.dose, calibration.output_score) for feature, calibration in calibrations.items()],
    )


def calibration_of(connection: sqlite3.Connection, feature: int) -> Calibration | None:
    """Return a feature's calibration; None if it was not calibrated."""
    query = "SELECT dose, output_score FROM features WHERE feature = ? AND dose IS NOT NULL"
    row = connection.execute(query, (feature,)).fetchone()
    return None if row is None else Calibration(*row)


def stored_feature(connection: sqlite3.Connection, feature: int) -> StoredFeature | None:
    """Return everything that is stored about a feature; None for nothing."""
    labels = current_labels(connection, feature)
    record, token_bytes = _record(connection, feature, labels)
    calibration = calibration_of(connection, feature)
    if record is None and not labels and calibration is None:
        return None
    return StoredFeature(feature, record, calibration, labels[0] if labels else None, labels, token_bytes)


def search_hits(connection: sqlite3.Connection, matches: Sequence[Match]) -> list[SearchHit]:
    """Return what lists show of the features that match."""
    num_tokens = max(_num_tokens(connection), 1)
    rows = connection.execute(
        "SELECT feature, content FROM heads JOIN json_each(?) ON feature = value",
        (json.dumps([match.feature for match in matches]),),
    )
    heads = {feature: unpack_details(content) for feature, content in rows}
    ids, token_bytes = tokens_of(connection, {token for head in heads.values() for token in head.tokens()})
    hits = []
    for match in matches:
        head = _with_token_ids(heads.get(match.feature, Details()), ids)
        labels = current_labels(connection, match.feature)
        dose, score = match.dose, match.output_score
        hits.append(
            SearchHit(
                feature=match.feature,
                label=labels[0] if labels else None,
                density=None if match.num_active is None else match.num_active / num_tokens,
                maximum=match.maximum,
                calibration=Calibration(dose, score) if dose is not None and score is not None else None,
                relevance=match.relevance,
                snippet=head.snippets[0] if head.snippets else None,
                promoted=tuple(token_id for token_id, _ in head.promoted),
                token_bytes=token_bytes,
            )
        )
    return hits


def _record(
    connection: sqlite3.Connection, feature: int, labels: Sequence[Label]
) -> tuple[FeatureRecord | None, Mapping[int, bytes]]:
    row = connection.execute(
        "SELECT num_active, maximum, mean, details.content, heads.content FROM features "
        "JOIN details USING (feature) JOIN heads USING (feature) WHERE feature = ?",
        (feature,),
    ).fetchone()
    if row is None:
        return None, {}
    num_active, maximum, mean, content, head = row
    details = unpack_details(content).with_head(unpack_details(head))
    ids, token_bytes = tokens_of(connection, set(details.tokens()))
    details = _with_token_ids(details, ids)
    activity = Activity(_num_tokens(connection), num_active, maximum, mean, details.quantiles, details.histogram)
    return FeatureRecord(
        feature=feature,
        activity=activity,
        snippets=details.snippets,
        peak_tokens=details.peak_tokens,
        promoted=details.promoted,
        suppressed=details.suppressed,
        neighbours=details.neighbours,
        labels=tuple(label for label in labels if label.origin in AUTOMATIC_ORIGINS),
    ), token_bytes


def _with_token_ids(details: Details, ids: Mapping[int, int]) -> Details:
    """Replace numbers of the vocabulary by the model's token ids."""
    try:
        return details.renumbered(ids)
    except KeyError as error:
        message = f"its token {error} is missing"
        raise ValueError(message) from error


def _num_tokens(connection: sqlite3.Connection) -> int:
    (value,) = connection.execute("SELECT value FROM meta WHERE key = 'num_tokens'").fetchone()
    return int(json.loads(value))

"""What a feature store's file has of features: written to its tables and indexes, and read back.

Raises ValueError for what is there and cannot be read; the store tells it with the name of its file.
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
"""Tokens on each side of a snippet's peak that are searched as what the feature fires on."""


def put_feature(connection: sqlite3.Connection, feature: FeatureRecord, vocabulary: Vocabulary) -> None:
    """Write what a harvest found of a feature; `vocabulary` has numbered its tokens."""
    number, activity = feature.feature, feature.activity
    connection.execute(
        "INSERT INTO features (feature, num_active, maximum, mean) VALUES (?, ?, ?, ?) ON CONFLICT (feature) DO UPDATE "
        "SET num_active = excluded.num_active, maximum = excluded.maximum, mean = excluded.mean",
        (number, activity.num_active, activity.maximum, activity.mean),
    )
    head, rest = details_of(feature).renamed(vocabulary.number_of).split()
    connection.execute("INSERT INTO heads VALUES (?, ?)", (number, pack_details(head)))
    connection.execute("INSERT INTO details VALUES (?, ?)", (number, pack_details(rest)))
    named = [token_id for pairs in (feature.peak_tokens, feature.promoted) for token_id, _ in pairs]
    near = [
        snippet.token_ids[max(0, snippet.peak - _PEAK_REACH) : snippet.peak + _PEAK_REACH + 1]
        for snippet in feature.snippets
    ]
    tokens = indexed(" ".join(vocabulary.text([token_id]) for token_id in named))
    peaks = indexed(" ".join(map(vocabulary.text, near)))
    texts = indexed(" ".join(vocabulary.text(snippet.token_ids) for snippet in feature.snippets))
    connection.execute("INSERT INTO peak_index (rowid, tokens, peaks) VALUES (?, ?, ?)", (number, tokens, peaks))
    # Whatever can match is in here, so that this index alone says what does.
    connection.execute("INSERT INTO text_index (rowid, text) VALUES (?, ?)", (number, f"{texts} {tokens}"))
    for label in feature.labels:
        put_label(connection, number, label)


def put_calibrations(connection: sqlite3.Connection, calibrations: Mapping[int, Calibration]) -> None:
    """Write what features do when they are pushed, in place of what was known."""
    connection.executemany(
        "INSERT INTO features (feature, dose, output_score) VALUES (?, ?, ?) ON CONFLICT (feature) DO UPDATE "
        "SET dose = excluded.dose, output_score = excluded.output_score",
        [(feature, found.dose, found.output_score) for feature, found in calibrations.items()],
    )


def calibration_of(connection: sqlite3.Connection, feature: int) -> Calibration | None:
    """Return what a feature does when it is pushed."""
    query = "SELECT dose, output_score FROM features WHERE feature = ? AND dose IS NOT NULL"
    row = connection.execute(query, (feature,)).fetchone()
    return None if row is None else Calibration(*row)


def stored_feature(connection: sqlite3.Connection, feature: int) -> StoredFeature | None:
    """Return all that is known of a feature; None for nothing."""
    labels = current_labels(connection, feature)
    harvested, token_bytes = _harvested(connection, feature, labels)
    calibration = calibration_of(connection, feature)
    if harvested is None and not labels and calibration is None:
        return None
    return StoredFeature(feature, harvested, calibration, labels[0] if labels else None, labels, token_bytes)


def found_features(connection: sqlite3.Connection, matches: Sequence[Match]) -> list[SearchHit]:
    """Return what lists show of the features that match."""
    num_tokens = max(_num_tokens(connection), 1)
    stored = connection.execute(
        "SELECT feature, content FROM heads JOIN json_each(?) ON feature = value",
        (json.dumps([match.feature for match in matches]),),
    )
    heads = {feature: unpack_details(content) for feature, content in stored}
    ids, token_bytes = tokens_of(connection, {token for head in heads.values() for token in head.tokens()})
    return [
        _row(
            match,
            num_tokens,
            _renamed(heads.get(match.feature, Details()), ids),
            token_bytes,
            current_labels(connection, match.feature),
        )
        for match in matches
    ]


def _harvested(
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
    details = _renamed(details, ids)
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


def _row(
    match: Match, num_tokens: int, head: Details, token_bytes: Mapping[int, bytes], labels: Sequence[Label]
) -> SearchHit:
    score = match.output_score
    return SearchHit(
        feature=match.feature,
        label=labels[0] if labels else None,
        density=None if match.num_active is None else match.num_active / num_tokens,
        maximum=match.maximum,
        calibration=Calibration(match.dose, score) if match.dose is not None and score is not None else None,
        relevance=match.relevance,
        snippet=head.snippets[0] if head.snippets else None,
        promoted=tuple(token_id for token_id, _ in head.promoted),
        token_bytes=token_bytes,
    )


def _renamed(details: Details, ids: Mapping[int, int]) -> Details:
    """Name the tokens by the model's ids."""
    try:
        return details.renamed(ids)
    except KeyError as error:
        message = f"its token {error} is missing"
        raise ValueError(message) from error


def _num_tokens(connection: sqlite3.Connection) -> int:
    (value,) = connection.execute("SELECT value FROM meta WHERE key = 'num_tokens'").fetchone()
    return int(json.loads(value))

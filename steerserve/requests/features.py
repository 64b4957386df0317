"""From what a feature store holds to what clients read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerserve.store.stored import token_texts
from steerserve.wire.features import (
    ActivityObject,
    FeatureObject,
    FeatureRow,
    LabelObject,
    Neighbour,
    PeakToken,
    ScoredToken,
    Snippet,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.store.records import Activity, Calibration, FeatureRecord, Label, TextSnippet
    from steerserve.store.stored import SearchHit, StoredFeature

_QUANTILES = ("0.5", "0.75", "0.9", "0.95", "0.99")
_NUM_PROMOTED = 10
"""Promoted tokens in a row of a list."""


def feature_row(dictionary: Dictionary, hit: SearchHit) -> FeatureRow:
    """Return one row of a list."""
    return FeatureRow(
        dictionary=dictionary.id,
        feature=hit.feature,
        density=hit.density,
        max=hit.maximum,
        relevance=hit.relevance,
        snippet=_snippet(hit.snippet, hit.token_bytes) if hit.snippet is not None else None,
        promoted=[_text(token_id, hit.token_bytes) for token_id in hit.promoted[:_NUM_PROMOTED]],
        **_label_fields(hit.label),
        **calibration_fields(hit.calibration),
    )


def feature_object(
    dictionary: Dictionary, feature: int, stored: StoredFeature | None, labels: Mapping[int, str]
) -> FeatureObject:
    """Return everything that is stored about a feature; `labels` are those of its neighbours."""
    record = stored.record if stored is not None else None
    activity = record.activity if record is not None else None
    return FeatureObject(
        dictionary=dictionary.id,
        feature=feature,
        hook=dictionary.hook_name,
        labels=[_label_object(label) for label in stored.labels] if stored is not None else [],
        density=activity.density if activity is not None else None,
        max=activity.maximum if activity is not None else None,
        activity=_activity(activity) if activity is not None else None,
        **_label_fields(stored.label if stored is not None else None),
        **calibration_fields(stored.calibration if stored is not None else None),
        **_record_fields(record, stored.token_bytes if stored is not None else {}, labels),
    )


def calibration_fields(calibration: Calibration | None) -> dict[str, Any]:
    """Return the fields of a row that come from a feature's calibration."""
    if calibration is None:
        return {"dose": None, "output_score": None, "role": None}
    return {"dose": calibration.dose, "output_score": calibration.output_score, "role": calibration.role}


def _label_fields(label: Label | None) -> dict[str, Any]:
    return {
        "label": label.text if label is not None else None,
        "label_origin": label.origin if label is not None else None,
    }


def _record_fields(
    record: FeatureRecord | None, token_bytes: Mapping[int, bytes], labels: Mapping[int, str]
) -> dict[str, Any]:
    if record is None:
        return {"snippets": [], "peak_tokens": [], "promoted": [], "suppressed": [], "nearest": []}
    return {
        "snippets": [_snippet(snippet, token_bytes) for snippet in record.snippets],
        "peak_tokens": [
            PeakToken(token=_text(token_id, token_bytes), token_id=token_id, count=count)
            for token_id, count in record.peak_tokens
        ],
        "promoted": _scored(record.promoted, token_bytes),
        "suppressed": _scored(record.suppressed, token_bytes),
        "nearest": [
            Neighbour(feature=feature, cosine=cosine, label=labels.get(feature))
            for feature, cosine in record.neighbours
        ],
    }


def _activity(activity: Activity) -> ActivityObject:
    return ActivityObject(
        tokens=activity.num_tokens,
        active=activity.num_active,
        mean=activity.mean,
        quantiles=dict(zip(_QUANTILES, activity.quantiles, strict=False)),
        histogram=list(activity.histogram),
    )


def _label_object(label: Label) -> LabelObject:
    return LabelObject(
        text=label.text, origin=label.origin, score=label.score, created=label.created, author=label.author
    )


def _snippet(snippet: TextSnippet, token_bytes: Mapping[int, bytes]) -> Snippet:
    return Snippet(
        tokens=token_texts(snippet.token_ids, token_bytes),
        activations=list(snippet.acts),
        peak=snippet.peak,
        interval=snippet.interval,
    )


def _scored(scores: Sequence[tuple[int, float]], token_bytes: Mapping[int, bytes]) -> list[ScoredToken]:
    return [
        ScoredToken(token=_text(token_id, token_bytes), token_id=token_id, score=score) for token_id, score in scores
    ]


def _text(token_id: int, token_bytes: Mapping[int, bytes]) -> str:
    return token_bytes[token_id].decode("utf-8", errors="replace")

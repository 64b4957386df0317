"""From what a feature store gives to what clients read."""

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
    from collections.abc import Mapping

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.store.records import Activity, Calibration, Feature, Label, Window
    from steerserve.store.stored import SearchHit, StoredFeature

_QUANTILES = ("0.5", "0.75", "0.9", "0.95", "0.99")
_NUM_SHOWN = 10
"""Promoted tokens in a list."""


def feature_row(dictionary: Dictionary, found: SearchHit) -> FeatureRow:
    """Write one row of a list."""
    texts = found.token_bytes
    return FeatureRow(
        dictionary=dictionary.id,
        feature=found.feature,
        density=found.density,
        max=found.maximum,
        relevance=found.relevance,
        snippet=_snippet(found.example, texts) if found.example is not None else None,
        promoted=[_text(token_id, texts) for token_id in found.promoted[:_NUM_SHOWN]],
        **_label_fields(found.label),
        **calibration_fields(found.calibration),
    )


def feature_object(
    dictionary: Dictionary, feature: int, stored: StoredFeature | None, labels: Mapping[int, str]
) -> FeatureObject:
    """Write all that is known of a feature; `labels` are those of its neighbours."""
    label = stored.label if stored is not None else None
    calibration = stored.calibration if stored is not None else None
    harvested = stored.harvested if stored is not None else None
    activity = harvested.activity if harvested is not None else None
    return FeatureObject(
        dictionary=dictionary.id,
        feature=feature,
        hook=dictionary.hook_name,
        labels=[_label_object(one) for one in stored.labels] if stored is not None else [],
        density=activity.density if activity is not None else None,
        max=activity.maximum if activity is not None else None,
        activity=_activity(activity) if activity is not None else None,
        **_label_fields(label),
        **calibration_fields(calibration),
        **_harvested_fields(harvested, stored.token_bytes if stored is not None else {}, labels),
    )


def calibration_fields(calibration: Calibration | None) -> dict[str, Any]:
    """Return what a row says of a feature's calibration."""
    if calibration is None:
        return {"dose": None, "output_score": None, "role": None}
    return {"dose": calibration.dose, "output_score": calibration.output_score, "role": calibration.role}


def _label_fields(label: Label | None) -> dict[str, Any]:
    return {
        "label": label.text if label is not None else None,
        "label_origin": label.origin if label is not None else None,
    }


def _harvested_fields(
    harvested: Feature | None, texts: Mapping[int, bytes], labels: Mapping[int, str]
) -> dict[str, Any]:
    if harvested is None:
        return {"snippets": [], "peak_tokens": [], "promoted": [], "suppressed": [], "nearest": []}
    return {
        "snippets": [_snippet(window, texts) for window in harvested.windows],
        "peak_tokens": [
            PeakToken(token=_text(token_id, texts), token_id=token_id, count=count)
            for token_id, count in harvested.peak_tokens
        ],
        "promoted": _scored(harvested.promoted, texts),
        "suppressed": _scored(harvested.suppressed, texts),
        "nearest": [
            Neighbour(feature=feature, cosine=cosine, label=labels.get(feature))
            for feature, cosine in harvested.neighbours
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


def _snippet(window: Window, texts: Mapping[int, bytes]) -> Snippet:
    return Snippet(
        tokens=token_texts(window.token_ids, texts),
        activations=list(window.acts),
        peak=window.peak,
        interval=window.interval,
    )


def _scored(tokens: tuple[tuple[int, float], ...], texts: Mapping[int, bytes]) -> list[ScoredToken]:
    return [ScoredToken(token=_text(token_id, texts), token_id=token_id, score=score) for token_id, score in tokens]


def _text(token_id: int, texts: Mapping[int, bytes]) -> str:
    return texts[token_id].decode("utf-8", errors="replace")

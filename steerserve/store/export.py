"""A feature store as lines of JSON, one for each feature, and labels read back from such lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

from steerserve.core.errors import ConfigError
from steerserve.core.label_text import clean_label, finite_number
from steerserve.core.literals import LabelOrigin
from steerserve.store.records import Label
from steerserve.store.stored import StoredFeature, token_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from steerserve.store.records import FeatureRecord
    from steerserve.store.store import FeatureStore

_MAX_LABEL_CHARS = 500
_SQLITE_MAGIC = b"SQLite format 3\0"


def export_lines(store: FeatureStore) -> Iterator[str]:
    """Yield one JSON object for each feature that the store knows, in order."""
    histories = store.label_histories()
    for feature in sorted({*store.feature_numbers(), *histories}):
        # A feature with a history and nothing else has lost all its labels.
        stored = store.feature(feature) or StoredFeature(feature, None, None, None, (), {})
        yield json.dumps(feature_json(stored, histories.get(feature, ())), ensure_ascii=False)


def feature_json(stored: StoredFeature, history: Sequence[Label]) -> dict[str, Any]:
    """Return everything that is stored about a feature, and every label that it ever had, as JSON."""
    calibration = stored.calibration
    return {
        "feature": stored.feature,
        "labels": [_label_json(label) for label in stored.labels],
        "history": [_label_json(label) for label in history],
        "dose": calibration.dose if calibration is not None else None,
        "output_score": calibration.output_score if calibration is not None else None,
        **(_record_json(stored.record, stored.token_bytes) if stored.record is not None else {}),
    }


def is_store(file: Path) -> bool:
    """Tell whether a file is a whole store, or any other database of SQLite.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return opened.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error


def read_labels(file: Path, d_sae: int) -> dict[int, list[Label]]:
    """Return the labels in exported lines; a line may also be as short as `{"feature": 7, "label": "bridges"}`.

    Raises:
        ConfigError: the file cannot be read, or a line is something else.
    """
    labels: dict[int, list[Label]] = {}
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            feature, labels_of_line = entry["feature"], _labels(entry)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = f'{file}, line {number}: an object with "feature" and "labels" (or "label") is needed.'
            raise ConfigError(message) from error
        if isinstance(feature, bool) or not isinstance(feature, int) or not 0 <= feature < d_sae:
            message = f"{file}, line {number}: the dictionary has features 0 to {d_sae - 1}, and not {feature!r}."
            raise ConfigError(message)
        if labels_of_line:
            labels[feature] = labels_of_line
    return labels


def _label_json(label: Label) -> dict[str, Any]:
    return {
        "text": label.text,
        "origin": label.origin,
        "score": label.score,
        "created": label.created,
        "author": label.author,
    }


def _labels(entry: Mapping[str, Any]) -> list[Label]:
    if "labels" not in entry:
        return [_label(entry["label"], "person")]
    return [
        _label(label["text"], label["origin"], label.get("score"), label.get("created", 0.0), label.get("author"))
        for label in entry["labels"]
    ]


def _label(text: object, origin: Any, score: Any = None, created: Any = 0.0, author: Any = None) -> Label:  # noqa: ANN401 JSON
    is_valid = isinstance(text, str) and origin in get_args(LabelOrigin) and isinstance(author, str | None)
    words = clean_label(str(text), _MAX_LABEL_CHARS) if is_valid else ""
    if not words:
        raise ValueError(text)
    author = clean_label(author or "", _MAX_LABEL_CHARS) or None
    return Label(words, origin, None if score is None else finite_number(score), finite_number(created), author)


def _record_json(record: FeatureRecord, token_bytes: Mapping[int, bytes]) -> dict[str, Any]:
    activity = record.activity
    return {
        "density": activity.density,
        "max": activity.maximum,
        "mean": activity.mean,
        "active": activity.num_active,
        "quantiles": activity.quantiles,
        "histogram": activity.histogram,
        "snippets": [
            {
                "tokens": token_texts(snippet.token_ids, token_bytes),
                "activations": snippet.acts,
                "peak": snippet.peak,
                "interval": snippet.interval,
            }
            for snippet in record.snippets
        ],
        "peak_tokens": _with_texts(record.peak_tokens, token_bytes),
        "promoted": _with_texts(record.promoted, token_bytes),
        "suppressed": _with_texts(record.suppressed, token_bytes),
        "nearest": record.neighbours,
    }


def _with_texts(tokens: tuple[tuple[int, float], ...], token_bytes: Mapping[int, bytes]) -> list[tuple[str, float]]:
    return [(token_bytes[token_id].decode("utf-8", errors="replace"), value) for token_id, value in tokens]

"""The texts of an experiment side by side: where each leaves the first arm's, and how strongly tokens are shaded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from steerserve.experiments.samples import Record

LEVELS = 9
_LEAST_SHARE = 0.04
"""Share of a feature's largest activation in the experiment, below which a token is not shaded."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that a page cannot show."""

Feature = tuple[str, str]
"""A dictionary's id and the index of a feature."""


class ShadedText(NamedTuple):
    """A part of a text with one shade."""

    text: str
    level: int
    """Strength of the shade, 0 for none to `LEVELS`."""
    title: str
    """The activation in words; empty without a shade."""
    is_shared: bool
    """Whether the first arm's text is the same up to this part."""


class Shades:
    """The shades of tokens, relative to a feature's largest activation in all texts of the experiment."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Find the largest activation of each feature."""
        self.peaks: dict[Feature, float] = {}
        for record in records:
            for feature, acts in _by_token(record).items():
                peak = max((act for act in acts if act is not None), default=0.0)
                self.peaks[feature] = max(self.peaks.get(feature, 0.0), peak)

    def of(
        self, features: Sequence[Feature], acts: Mapping[Feature, Sequence[float | None]], token: int
    ) -> tuple[int, str]:
        """Return a token's level, by the strongest of `features`, and its title."""
        best, title = 0.0, ""
        for feature in features:
            column = acts.get(feature, ())
            act = column[token] if token < len(column) else None
            peak = self.peaks.get(feature, 0.0)
            if act and peak > 0 and act / peak > max(best, _LEAST_SHARE):
                best, title = act / peak, f"{feature[0]}/{feature[1]}: {act:.3g}"
        return (max(1, round(best * LEVELS)) if best else 0), title


def edited_features(record: Record) -> list[Feature]:
    """Return the features that a sample edits; all measured features if it edits none."""
    edits = (record.get("steering") or {}).get("edits", [])
    own = [(edit["dictionary"], str(edit["feature"])) for edit in edits if edit.get("feature") is not None]
    return list(dict.fromkeys(own)) or list(_by_token(record))


def pieces_of(record: Record, shades: Shades) -> list[ShadedText]:
    """Return the parts of a sample's text; neighbouring tokens with equal shades are joined."""
    metrics = record.get("metrics") or {}
    divergence = metrics.get("first_divergence")
    acts, features = _by_token(record), edited_features(record)
    room = len(record["text"])
    pieces: list[ShadedText] = []
    for index, token in enumerate(metrics.get("tokens") or [record["text"]]):
        text, room = token[:room], room - len(token[:room])
        if not text:
            continue
        level, title = shades.of(features, acts, index)
        is_shared = divergence is None or index < divergence
        piece = ShadedText(plain(text), level, title, is_shared)
        if pieces and level == 0 == pieces[-1].level and is_shared == pieces[-1].is_shared:
            pieces[-1] = piece._replace(text=pieces[-1].text + piece.text)
        else:
            pieces.append(piece)
    return pieces


def plain(text: str) -> str:
    """Return text that a page can show: other characters become replacement characters."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _by_token(record: Record) -> dict[Feature, list[float | None]]:
    by_dictionary: Mapping[str, Any] = (record.get("metrics") or {}).get("features_by_token") or {}
    return {(name, feature): acts for name, columns in by_dictionary.items() for feature, acts in columns.items()}

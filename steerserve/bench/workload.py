"""The requests of a measurement: prompts without a common prefix, and edits that no two rows share."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

_WORDS = [
    *("river", "stone", "market", "winter", "letter", "garden", "engine", "harbour", "silver", "teacher"),
    *("window", "forest", "bridge", "music", "paper", "mountain", "island", "doctor", "shadow", "kitchen"),
    *("soldier", "morning", "village", "captain", "orange", "thunder", "feather", "copper", "lantern", "meadow"),
]
_NUM_WORDS = 24
_SCALE = 2.0


@dataclass(frozen=True, slots=True)
class DictionaryInfo:
    """The dictionary whose features are edited."""

    id: str
    """Its id on the server."""
    d_sae: int
    """Number of its features."""


class Workload:
    """Makes request bodies. Each prompt is new, so that no request profits from a shared prefix."""

    def __init__(self, *, model: str, max_tokens: int, dictionary: DictionaryInfo | None, seed: int) -> None:
        """Make requests for `model` that generate `max_tokens` each; the same seed gives the same requests."""
        self._model = model
        self._max_tokens = max_tokens
        self._dictionary = dictionary
        self._random = random.Random(seed)  # noqa: S311 words, not secrets

    def batch(self, edits_by_row: list[int]) -> list[dict[str, Any]]:
        """Return one request for each row, with that row's number of edits."""
        return [self._body(row, num_edits) for row, num_edits in enumerate(edits_by_row)]

    def _body(self, row: int, num_edits: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": " ".join(self._random.choices(_WORDS, k=_NUM_WORDS)),
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if edits := self._edits(row, num_edits):
            body["steering"] = edits
        return body

    def _edits(self, row: int, num_edits: int) -> list[dict[str, Any]]:
        # Clamping needs both the feature's activation and its direction, which makes it the costliest kind of edit.
        if self._dictionary is None:
            return []
        first = row * num_edits
        return [
            {
                "dictionary": self._dictionary.id,
                "feature": feature % self._dictionary.d_sae,
                "mode": "clamp",
                "scale": _SCALE,
            }
            for feature in range(first, first + num_edits)
        ]

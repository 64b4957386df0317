"""What a search asks of the SQLite file: words to index queries, matches to an order.

A feature matches where each word of the query is in its label, among its promoted and peak tokens, or in its windows.
The last word may be the beginning of one.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from steerserve.core.errors import InvalidRequestError
from steerserve.features.records import WRITES_SCORE

Sort = Literal["relevance", "steerability", "density", "max", "feature"]

MAX_WORDS = 16
_LEAST_PREFIX_CHARS = 2
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])"
)
"""Letters of scripts that write no spaces between words: each counts as a word of its own."""

_STEERABILITY = "coalesce(output_score, 0)"
_ORDERS: dict[Sort, str] = {
    "relevance": f"relevance DESC, {_STEERABILITY} DESC, (num_active > 0) DESC",
    "steerability": f"{_STEERABILITY} DESC, (num_active > 0) DESC",
    "density": "coalesce(num_active, -1) DESC",
    "max": "coalesce(maximum, -1) DESC",
    "feature": "feature",
}
_COLUMNS = "feature, relevance, num_active, maximum, dose, output_score"
_ALL = "SELECT feature, NULL AS score FROM features UNION SELECT rowid, NULL FROM label_index"
_PER_WORD = (
    "SELECT ?, rowid, -3.0 * bm25(label_index) FROM label_index WHERE label_index MATCH ?",
    "SELECT ?, rowid, -bm25(peak_index, 1.0, 2.0) FROM peak_index WHERE peak_index MATCH ?",
    "SELECT ?, rowid, 0.05 FROM text_index WHERE text_index MATCH ?",
)
"""A rare word has a BM25 score of a few units; in a label it counts three times, near a peak twice, and only a little
where it is somewhere in a window."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A query of the database and its values."""

    sql: str
    values: tuple[object, ...]


def search_statement(query: str, sort: Sort, limit: int, offset: int) -> Statement:
    """Return the query for the features that match; for an empty `query` all of them.

    A match that writes what it promotes counts up to twice: its score is multiplied by `1 + o / (o + WRITES_SCORE)`,
    with `o` its output score.

    Raises:
        InvalidRequestError: there are too many words.
    """
    words = _WORD.findall(indexed(query))
    if len(words) > MAX_WORDS:
        message = f"q has {len(words)} words, and at most {MAX_WORDS} are searched for."
        raise InvalidRequestError(message, param="q")
    matched, values = _matches(words) if query.strip() else (_ALL, [])
    boosted = f"score * (1 + {_STEERABILITY} / ({_STEERABILITY} + {WRITES_SCORE}))"
    sql = (
        f"WITH matched (feature, score) AS ({matched}) "  # noqa: S608 constants
        f"SELECT {_COLUMNS} FROM (SELECT matched.feature AS feature, {boosted} AS relevance, num_active, maximum, dose, "
        "output_score FROM matched LEFT JOIN features ON features.feature = matched.feature "
        "LEFT JOIN calibrations ON calibrations.feature = matched.feature) "
        f"ORDER BY {_ORDERS[sort]}, feature LIMIT ? OFFSET ?"
    )
    return Statement(sql, (*values, limit, offset))


def indexed(text: str) -> str:
    """Return text as the indexes read it."""
    return _UNSPACED.sub(r" \1 ", unicodedata.normalize("NFC", text))


def _matches(words: list[str]) -> tuple[str, list[object]]:
    if not words:  # punctuation alone: no index holds any
        return "SELECT NULL, NULL WHERE FALSE", []
    hits, values = [], list[object]()
    for place, word in enumerate(words):
        expression = f'"{word}"'
        if place == len(words) - 1 and len(word) >= _LEAST_PREFIX_CHARS:
            expression = f'"{word}" OR "{word}"*'  # the whole word counts twice
        for part in _PER_WORD:
            hits.append(part)
            values += [place, expression]
    matched = (
        f"WITH hits (word, feature, score) AS ({' UNION ALL '.join(hits)}) "  # noqa: S608 constants
        "SELECT feature, sum(score) FROM hits GROUP BY feature HAVING count(DISTINCT word) = ?"
    )
    return matched, [*values, len(words)]

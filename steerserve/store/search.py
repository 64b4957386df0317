"""Searching a feature store: words become index queries, matches are put in order.

A feature matches if each word of the query is in its label, among its promoted and peak tokens, or in its snippets. The
last word of the query may be the beginning of such a word.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from steerserve.core.errors import InvalidRequestError
from steerserve.store.records import WRITES_SCORE

if TYPE_CHECKING:
    import sqlite3

Sort = Literal["relevance", "steerability", "density", "max", "feature"]

MAX_WORDS = 16
"""Most words of a query."""
MAX_LETTERS = 64
"""Most letters of scripts without spaces in a query; they do not count as words."""
_LEAST_PREFIX_CHARS = 3
_COMMON = 0.5
"""Share of all features above which a word is not scored: BM25 gives it nothing, and takes long for that."""
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])"
)
"""Letters of scripts without spaces between words; each is indexed as a word of its own."""

_STEERABILITY = "coalesce(output_score, 0)"
_ORDERS: dict[Sort, str] = {
    "relevance": f"relevance DESC, {_STEERABILITY} DESC, (num_active > 0) DESC",
    "steerability": f"{_STEERABILITY} DESC, (num_active > 0) DESC",
    "density": "coalesce(num_active, -1) DESC",
    "max": "coalesce(maximum, -1) DESC",
    "feature": "feature",
}
_ALL = "SELECT feature, NULL FROM features"
_IN_ANY = """(
    feature IN (SELECT rowid FROM label_index WHERE label_index MATCH ?)
    OR feature IN (SELECT rowid FROM text_index WHERE text_index MATCH ?)
)"""
_IN_LABEL = (
    "SELECT rowid AS feature, ? * (1 + (instr(lower(label), ?) > 0)) / (1 + length(label) / 100.0) AS score, "
    "0 AS is_match FROM label_index WHERE label_index MATCH ?"
)
"""A label with the exact word counts twice: the index reduces universe and university to one stem."""
_NEAR_PEAK = (
    "SELECT rowid AS feature, -bm25(peak_index, 1.0, 2.0) AS score, 0 AS is_match FROM peak_index "
    "WHERE peak_index MATCH ?"
)
_SOMEWHERE = "SELECT feature, 0.05 AS score, 1 AS is_match FROM matching"
_LABEL_WEIGHT = 6.6
"""Three times the most that a word near a peak can score, which is 2.2 times its rarity (BM25)."""


@dataclass(frozen=True, slots=True)
class Match:
    """A feature that matches, with the values that it can be ordered by; None for a value that the store lacks."""

    feature: int
    relevance: float | None
    num_active: int | None
    maximum: float | None
    dose: float | None
    output_score: float | None


def search(connection: sqlite3.Connection, query: str, sort: Sort, limit: int, offset: int) -> list[Match]:
    """Return the features that match, in order; an empty `query` returns all features, without a relevance.

    The score of a match is multiplied by `1 + o / (o + WRITES_SCORE)`, where `o` is the feature's output score, so that
    features that write what they promote score up to twice as much. Ties are ordered by feature.

    Raises:
        InvalidRequestError: the query has too many words.
    """
    words = _WORD.findall(indexed(query))
    num_letters = sum(_UNSPACED.fullmatch(word) is not None for word in words)
    if len(words) - num_letters > MAX_WORDS or num_letters > MAX_LETTERS:
        message = (
            f"q has {len(words) - num_letters} words and {num_letters} letters of scripts without spaces; it may have "
            f"at most {MAX_WORDS} and {MAX_LETTERS}."
        )
        raise InvalidRequestError(message, param="q")
    if query.strip() and not words:  # punctuation is not indexed
        return []
    scored, values = _scored(connection, words) if words else (_ALL, list[str | float]())
    relevance = f"score * (1 + {_STEERABILITY} / ({_STEERABILITY} + {WRITES_SCORE}))"
    rows = connection.execute(
        f"WITH scored (feature, score) AS ({scored}) "  # noqa: S608 constants
        f"SELECT scored.feature AS feature, {relevance} AS relevance, num_active, maximum, dose, output_score "
        "FROM scored JOIN features ON features.feature = scored.feature "
        f"ORDER BY {_ORDERS[sort]}, scored.feature LIMIT ? OFFSET ?",
        (*values, limit, offset),
    )
    return [Match(*row) for row in rows]


def indexed(text: str) -> str:
    """Return text in the form in which it is indexed."""
    return _UNSPACED.sub(r" \1 ", unicodedata.normalize("NFC", text))


def _scored(connection: sqlite3.Connection, words: list[str]) -> tuple[str, list[str | float]]:
    """Return the SQL query for the features that have all words, with their scores, and its values."""
    terms = [f'"{word}"' for word in words]
    if len(words[-1]) >= _LEAST_PREFIX_CHARS:
        terms[-1] = f"({terms[-1]} OR {terms[-1]}*)"  # the whole word counts for more
    # BM25 would measure the rarity of a word by the labels that exist, which says nothing if there is only one.
    (d_sae,) = connection.execute("SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'd_sae'").fetchone()
    word_of = {f'"{word}"': word.lower() for word in words} | {terms[-1]: words[-1].lower()}
    num_labels = {term: _count(connection, "label_index", term) for term in word_of}
    matching, values = _matching(sorted(terms, key=num_labels.__getitem__))
    parts = [_SOMEWHERE]
    for term, count in num_labels.items():
        if 0 < count <= max(1, _COMMON * d_sae):
            parts.append(_IN_LABEL)
            values += [_LABEL_WEIGHT * math.log(1 + d_sae / count), word_of[term], term]
    scored_terms = [term for term in terms if _count(connection, "peak_index", term) <= _COMMON * d_sae]
    if scored_terms:
        parts.append(_NEAR_PEAK)
        values.append(" OR ".join(scored_terms))
    if len(parts) == 1:  # all words are common
        return f"WITH matching (feature) AS ({matching}) SELECT feature, 0.05 FROM matching", values  # noqa: S608
    scored = (
        f"WITH matching (feature) AS MATERIALIZED ({matching}) SELECT feature, sum(score) "  # noqa: S608 constants
        f"FROM ({' UNION ALL '.join(parts)}) GROUP BY feature HAVING max(is_match)"
    )
    return scored, values


def _matching(terms: list[str]) -> tuple[str, list[str | float]]:
    """Return the SQL query for the features that have all of `terms`, and its values; put rare terms first."""
    all_terms, any_term = " AND ".join(terms), " OR ".join(terms)
    query = (
        "SELECT rowid FROM text_index WHERE text_index MATCH ? "
        "UNION SELECT rowid FROM label_index WHERE label_index MATCH ?"
    )
    if len(terms) == 1:
        return query, [all_terms, all_terms]
    # A label may have some of the words, and the text the others.
    query = (
        "WITH mixed AS MATERIALIZED (SELECT rowid AS feature FROM label_index WHERE label_index MATCH ?) "  # noqa: S608
        f"{query} UNION SELECT feature FROM mixed WHERE {' AND '.join([_IN_ANY] * len(terms))}"
    )
    return query, [f"({any_term}) NOT ({all_terms})", all_terms, all_terms, *(term for term in terms for _ in range(2))]


def _count(connection: sqlite3.Connection, index: str, term: str) -> int:
    query = f"SELECT count(*) FROM {index} WHERE {index} MATCH ?"  # noqa: S608 constants
    return int(connection.execute(query, (term,)).fetchone()[0])

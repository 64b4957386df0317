"""Labels without a language model: the token a feature fires on, the tokens it writes, the words around it."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING

from steerserve.store.records import Label

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from steerserve.store.records import FeatureRecord, TextSnippet

    TokenBytes = Callable[[int], bytes]

LEAST_PURITY = 0.6
"""Share of its strongest snippets that must peak at a token for the feature to fire on the token."""
LEAST_Z = 6.5
"""Standard deviations above the vocabulary that the first promoted token needs for a label.

One of 200 random directions reaches it, and not many more features in the middle of a model.
"""
_LEAST_SNIPPETS = 3
_SAME_WORD = 0.8
"""Share of the peaks at a token that must be in the same word for the label to name the word."""
_NUM_NAMED = 3
"""Tokens or words in a label."""
_WORD_REACH = 10
"""Tokens on each side of a peak whose words count."""
_LEAST_WORD_SHARE = 0.2
_LEAST_WORD_WEIGHT = 2
"""Least weight of a word: the number of snippets that have it, those whose peak is in it counted twice."""
_LEAST_RARITY = 1.5
"""Least inverse document frequency of a word: more than one feature in five has a more common word in a snippet."""
_WORD = re.compile(r"[^\W\d_]{2,}")


class Labeller:
    """Makes automatic labels of one dictionary's features.

    It reads the snippets of all features first, since a word of one feature counts less if many others have it.
    """

    def __init__(self, token_bytes: TokenBytes, special_ids: frozenset[int], created: float) -> None:
        """Begin without features.

        Args:
            token_bytes: Returns the bytes of a token id.
            special_ids: Special tokens, which are not text.
            created: Unix time of the labels.
        """
        self._token_bytes = token_bytes
        self._special_ids = special_ids
        self._created = created
        self._bytes_of: dict[int, bytes] = {}
        self._words: dict[int, Mapping[str, tuple[float, float]]] = {}
        """Frequent words of each feature, each with its weight and the share of snippets that have it."""
        self._num_features: Counter[str] = Counter()

    def read(self, feature: int, snippets: Sequence[TextSnippet]) -> None:
        """Count the words in the snippets of one feature."""
        strongest = _strongest(snippets)
        near: Counter[str] = Counter()
        at_peak: Counter[str] = Counter()
        for snippet in strongest:
            words, peak_word = self._words_of(snippet)
            near.update(words)
            at_peak.update(peak_word)
        weights = near + at_peak
        least = max(_LEAST_WORD_WEIGHT, math.ceil(_LEAST_WORD_SHARE * len(strongest)))
        self._words[feature] = {
            word: (weight / len(strongest), near[word] / len(strongest))
            for word, weight in weights.items()
            if weight >= least
        }
        self._num_features.update(near.keys())

    def labels(self, record: FeatureRecord) -> tuple[Label, ...]:
        """Return the labels of a feature whose snippets were read."""
        labels = (self._peak(record), self._promoted(record), self._words_around(record.feature))
        return tuple(label for label in labels if label is not None)

    def _peak(self, record: FeatureRecord) -> Label | None:
        """Name the token at which most of its strongest snippets peak, in any spelling; None if none has most."""
        strongest = _strongest(record.snippets)
        if len(strongest) < _LEAST_SNIPPETS:
            return None
        texts = [self._text([snippet.token_ids[snippet.peak]]) for snippet in strongest]
        folded, count = Counter(map(_folded, texts)).most_common(1)[0]
        if (purity := count / len(texts)) < LEAST_PURITY:
            return None
        matches = [index for index, text in enumerate(texts) if _folded(text) == folded]
        token = _quoted(texts[matches[0]])
        # If the token is nearly always a piece of the same word, the word says more.
        words = Counter(word for index in matches for word in self._words_of(strongest[index])[1])
        for word, number in words.most_common(1):
            if word != folded and number >= _SAME_WORD * len(matches):
                token = f"{token} of {_quoted(word)}"
        return Label(f"fires on {token}", "peak", purity, self._created)

    def _promoted(self, record: FeatureRecord) -> Label | None:
        """Name the tokens that it promotes, if they stand out; the score is by how many standard deviations."""
        if not record.promoted or record.promoted[0][1] < LEAST_Z:
            return None
        texts: dict[str, str] = {}
        for token_id, _ in record.promoted:
            text = self._text([token_id])
            texts.setdefault(_folded(text), text)
        tokens = ", ".join(_quoted(text) for text in list(texts.values())[:_NUM_NAMED])
        return Label(f"writes {tokens}", "promoted", record.promoted[0][1], self._created)

    def _words_around(self, feature: int) -> Label | None:
        """Name words of its snippets that are rare in other features; the score is the share with the first word."""
        words = self._words[feature]
        rarity = {word: math.log(len(self._words) / self._num_features[word]) for word in words}
        rare = [word for word in words if rarity[word] >= _LEAST_RARITY]
        best = sorted(rare, key=lambda word: (-words[word][0] * rarity[word], word))
        if not best:
            return None
        return Label(", ".join(best[:_NUM_NAMED]), "words", words[best[0]][1], self._created)

    def _words_of(self, snippet: TextSnippet) -> tuple[set[str], set[str]]:
        """Return the words near the peak, and those that the peak is in."""
        start, stop = max(snippet.peak - _WORD_REACH, 0), snippet.peak + _WORD_REACH + 1
        before, peak, after = (
            self._text([token_id for token_id in token_ids if token_id not in self._special_ids]).casefold()
            for token_ids in (
                snippet.token_ids[start : snippet.peak],
                snippet.token_ids[snippet.peak : snippet.peak + 1],
                snippet.token_ids[snippet.peak + 1 : stop],
            )
        )
        text = before + peak + after
        # A word that continues beyond the reach is incomplete.
        is_cut = (
            start > 0 and self._text(snippet.token_ids[start - 1 : start])[-1:].isalpha(),
            self._text(snippet.token_ids[stop : stop + 1])[:1].isalpha(),
        )
        matches = [
            match
            for match in _WORD.finditer(text)
            if not (is_cut[0] and match.start() == 0) and not (is_cut[1] and match.end() == len(text))
        ]
        low, high = len(before), len(before) + len(peak)
        at_peak = {match[0] for match in matches if match.start() < high and match.end() > low}
        return {match[0] for match in matches}, at_peak

    def _text(self, token_ids: Sequence[int]) -> str:
        for token_id in token_ids:
            if token_id not in self._bytes_of:
                self._bytes_of[token_id] = self._token_bytes(token_id)
        return b"".join(self._bytes_of[token_id] for token_id in token_ids).decode("utf-8", errors="replace")


def _strongest(snippets: Sequence[TextSnippet]) -> list[TextSnippet]:
    return [snippet for snippet in snippets if snippet.interval is None]


def _folded(text: str) -> str:
    return text.strip().casefold() or text


def _quoted(text: str) -> str:
    """Return a token in quotes, without the space before it, unless it is only space."""
    visible = text.strip() or repr(text)[1:-1]
    return f"'{visible}'" if '"' in visible else f'"{visible}"'

"""Labels without a language model: the token a feature fires on, the tokens it writes, the words it is found among."""

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
"""A feature fires on a token where so many of its strongest snippets peak there."""
LEAST_Z = 6.5
"""Promoted tokens say something where the first is so many standard deviations above the vocabulary. Of random
directions one in 200 comes so far; of features in the middle of a model not many more."""
_LEAST_SNIPPETS = 3
_SAME_WORD = 0.8
_NUM_SHOWN = 3
_WORD_REACH = 10
"""Tokens on each side of a peak whose words count."""
_LEAST_WORD_SHARE = 0.2
_LEAST_WORD_WEIGHT = 2
"""Snippets that have a word count once, and those whose peak is in it twice."""
_LEAST_RARITY = 1.5
"""Words that more than about one feature in five has in some snippet set nothing apart."""
_WORD = re.compile(r"[^\W\d_]{2,}")


class Labeller:
    """Makes the automatic labels of one dictionary's features, by comparison with each other.

    It is told of every feature's snippets first, since the words of one are weighed by how many others have them.
    """

    def __init__(self, token_bytes: TokenBytes, special_ids: frozenset[int], created: float) -> None:
        """Begin with no feature.

        Args:
            token_bytes: What a token id stands for.
            special_ids: Tokens that are no text.
            created: The time of the labels.
        """
        self._token_bytes = token_bytes
        self._special_ids = special_ids
        self._created = created
        self._known: dict[int, bytes] = {}
        self._words: dict[int, Mapping[str, tuple[float, float]]] = {}
        """Of each feature's frequent words the weight, and the share of snippets that have it."""
        self._num_features: Counter[str] = Counter()

    def read(self, feature: int, snippets: Sequence[TextSnippet]) -> None:
        """Take in the snippets of one feature."""
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

    def labels(self, feature: FeatureRecord) -> tuple[Label, ...]:
        """Return what can be said of a feature that was read."""
        made = (self._peak(feature), self._promoted(feature), self._among(feature.feature))
        return tuple(label for label in made if label is not None)

    def _peak(self, feature: FeatureRecord) -> Label | None:
        """Name the token that its strongest snippets peak at, in whatever spelling, where there is one."""
        strongest = _strongest(feature.snippets)
        if len(strongest) < _LEAST_SNIPPETS:
            return None
        texts = [self._text([snippet.token_ids[snippet.peak]]) for snippet in strongest]
        folded, count = Counter(map(_folded, texts)).most_common(1)[0]
        if (purity := count / len(texts)) < LEAST_PURITY:
            return None
        at = [place for place, text in enumerate(texts) if _folded(text) == folded]
        shown = _quoted(texts[at[0]])
        # Where the token is a piece of the same word nearly always, that says more.
        words = Counter(word for place in at for word in self._words_of(strongest[place])[1])
        for word, number in words.most_common(1):
            if word != folded and number >= _SAME_WORD * len(at):
                shown = f"{shown} of {_quoted(word)}"
        return Label(f"fires on {shown}", "peak", purity, self._created)

    def _promoted(self, feature: FeatureRecord) -> Label | None:
        """Name the tokens that it promotes, where they stand out; the score is by how much."""
        if not feature.promoted or feature.promoted[0][1] < LEAST_Z:
            return None
        texts: dict[str, str] = {}
        for token_id, _ in feature.promoted:
            text = self._text([token_id])
            texts.setdefault(_folded(text), text)
        shown = ", ".join(_quoted(text) for text in list(texts.values())[:_NUM_SHOWN])
        return Label(f"writes {shown}", "promoted", feature.promoted[0][1], self._created)

    def _among(self, feature: int) -> Label | None:
        """Name the words that are in its snippets and not in those of others; the score is the first one's share."""
        words = self._words[feature]
        rarity = {word: math.log(len(self._words) / self._num_features[word]) for word in words}
        rare = [word for word in words if rarity[word] >= _LEAST_RARITY]
        best = sorted(rare, key=lambda word: (-words[word][0] * rarity[word], word))
        if not best:
            return None
        return Label(", ".join(best[:_NUM_SHOWN]), "words", words[best[0]][1], self._created)

    def _words_of(self, snippet: TextSnippet) -> tuple[set[str], set[str]]:
        """Return the words near the peak, and the one that the peak is in."""
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
        # A word that goes on beyond the reach would be half of one.
        is_cut = (
            start > 0 and self._text(snippet.token_ids[start - 1 : start])[-1:].isalpha(),
            self._text(snippet.token_ids[stop : stop + 1])[:1].isalpha(),
        )
        found = [
            match
            for match in _WORD.finditer(text)
            if not (is_cut[0] and match.start() == 0) and not (is_cut[1] and match.end() == len(text))
        ]
        low, high = len(before), len(before) + len(peak)
        at_peak = {match[0] for match in found if match.start() < high and match.end() > low}
        return {match[0] for match in found}, at_peak

    def _text(self, token_ids: Sequence[int]) -> str:
        for token_id in token_ids:
            if token_id not in self._known:
                self._known[token_id] = self._token_bytes(token_id)
        return b"".join(self._known[token_id] for token_id in token_ids).decode("utf-8", errors="replace")


def _strongest(snippets: Sequence[TextSnippet]) -> list[TextSnippet]:
    return [snippet for snippet in snippets if snippet.interval is None]


def _folded(text: str) -> str:
    return text.strip().casefold() or text


def _quoted(text: str) -> str:
    """Return a token as people read it: without the space before it, unless it is nothing else."""
    shown = text.strip() or repr(text)[1:-1]
    return f"'{shown}'" if '"' in shown else f'"{shown}"'

"""What an interpretation records of a feature: what the scan finds, the store keeps and the API shows. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerserve.core.literals import LabelOrigin, Role

STORES_FOLDER = ".features"
"""Folder in the first of `dictionary_dirs` for the stores of dictionaries in folders that are not ours to write."""
NUM_TOP_SNIPPETS = 20
"""Strongest snippets that are kept of a feature."""
NUM_INTERVALS = 5
"""Equal intervals of activation from 0 to a feature's maximum, from each of which snippets are drawn."""
SNIPPETS_PER_INTERVAL = 5
"""Snippets that are drawn from one interval."""
SNIPPET_TOKENS = 41
"""Tokens of a whole snippet: the peak and 20 tokens on each side, fewer at the beginning or end of a text."""
WRITES_SCORE = 0.01
"""Output score from which a feature writes the tokens that it promotes; below it, it mostly reads.

Source: docs/features.md, "Finding a feature".
"""


@dataclass(frozen=True, slots=True)
class TextSnippet:
    """A piece of text around a token at which a feature was active."""

    token_ids: tuple[int, ...]
    """Token ids of the text."""
    acts: tuple[float, ...]
    """The feature's activation at each token; 0 at special tokens and attention sinks."""
    peak: int
    """Index of the token around which the snippet was cut."""
    interval: int | None
    """Interval of activation that the snippet was drawn from, 0 to 4; None for one of the strongest snippets."""


@dataclass(frozen=True, slots=True)
class Activity:
    """How often and how strongly a feature was active in the text."""

    num_tokens: int
    """Number of tokens that were read, without special tokens and attention sinks."""
    num_active: int
    """Number of tokens at which the feature was active."""
    maximum: float
    """Largest activation."""
    mean: float
    """Mean activation over the tokens at which the feature was active."""
    quantiles: tuple[float, ...]
    """Quantiles .5, .75, .9, .95 and .99 of the activation over the active tokens."""
    histogram: tuple[int, ...]
    """Numbers of active tokens in 64 equal bins from 0 to the maximum."""

    @property
    def density(self) -> float:
        """Share of the tokens at which the feature was active."""
        return self.num_active / self.num_tokens if self.num_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a feature does when its direction is added to the residual stream."""

    dose: float
    """Raw scale at which the 95th percentile over tokens of KL(steered || unsteered) is 1 nat."""
    output_score: float
    """How likely one dose makes the feature's own promoted tokens; see `dose.calibrate.output_score`."""

    @property
    def writes(self) -> bool:
        """Whether the feature visibly writes the tokens that it promotes."""
        return self.output_score >= WRITES_SCORE

    @property
    def role(self) -> Role:
        """The feature's role: `writes` or `reads`."""
        return "writes" if self.writes else "reads"


@dataclass(frozen=True, slots=True)
class Label:
    """A few words that describe a feature."""

    text: str
    """The words."""
    origin: LabelOrigin
    """Who or what made the label."""
    score: float | None = None
    """How well an `llm` label predicts unseen snippets, or how pure an automatic label is; None if not measured."""
    created: float = 0.0
    """Unix time in seconds; 0 if unknown."""
    author: str | None = None
    """Name of the language model that wrote the label; None for other origins."""


@dataclass(frozen=True, slots=True)
class FeatureRecord:
    """Everything that an interpretation records of one feature."""

    feature: int
    """Index of the feature."""
    activity: Activity
    """Statistics of its activation."""
    snippets: tuple[TextSnippet, ...]
    """The strongest snippets, strongest first, then those that were drawn from the intervals."""
    peak_tokens: tuple[tuple[int, int], ...]
    """Token ids at which it peaked within a context window, each with its count; the most frequent first."""
    promoted: tuple[tuple[int, float], ...]
    """Token ids whose logits its direction raises most, each with the rise in standard deviations."""
    suppressed: tuple[tuple[int, float], ...]
    """Token ids whose logits its direction lowers most, each with the (negative) change in standard deviations."""
    neighbours: tuple[tuple[int, float], ...]
    """Features of the dictionary with the nearest directions, each with the cosine."""
    labels: tuple[Label, ...] = ()
    """Automatic labels."""

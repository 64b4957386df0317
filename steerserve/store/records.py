"""What is known of a feature, as data: what the harvest finds, the store keeps and the API shows. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerserve.core.literals import LabelOrigin, Role

NUM_TOP_SNIPPETS = 20
NUM_INTERVALS = 5
SNIPPETS_PER_INTERVAL = 5
SNIPPET_TOKENS = 41
"""Tokens of a window: the peak, and as many on each side of it as the text has, at most 20."""
WRITES_SCORE = 0.01
"""Features of at least this output score write what they promote; the others mostly read. Source: training.md."""


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of text around a token where the feature was active."""

    token_ids: tuple[int, ...]
    acts: tuple[float, ...]
    """The feature's activation at each token; 0 at special tokens and sinks."""
    peak: int
    """Place of the token that the window was chosen for."""
    interval: int | None
    """None for one of the strongest; else 0 to 4, the fifth of the range up to the maximum that it was drawn from."""


@dataclass(frozen=True, slots=True)
class Activity:
    """How often and how strongly a feature was active in the text."""

    num_tokens: int
    """Tokens that were read, special ones and sinks left out."""
    num_active: int
    maximum: float
    mean: float
    """Over the tokens where it was active."""
    quantiles: tuple[float, ...]
    """At .5, .75, .9, .95 and .99 of the active tokens."""
    histogram: tuple[int, ...]
    """Active tokens in 64 equal bins from 0 to the maximum."""

    @property
    def density(self) -> float:
        """Share of tokens where it was active."""
        return self.num_active / self.num_tokens if self.num_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the feature does when it is pushed."""

    dose: float
    """Raw change of its activation at which the 95th percentile over tokens of KL(steered || unsteered) is 1 nat."""
    output_score: float
    """Whether pushing it makes its own promoted tokens likely: (1 - rank / vocabulary) * p of the best of them."""

    @property
    def writes(self) -> bool:
        """Whether it visibly writes what it promotes."""
        return self.output_score >= WRITES_SCORE

    @property
    def role(self) -> Role:
        """What people call that."""
        return "writes" if self.writes else "reads"


@dataclass(frozen=True, slots=True)
class Label:
    """A few words for a feature."""

    text: str
    origin: LabelOrigin
    score: float | None = None
    """How well it predicts activity on text it was not made from (llm), or its purity (automatic)."""
    created: float = 0.0
    """Unix time in seconds."""
    author: str | None = None
    """The model's name, for a label by one."""


@dataclass(frozen=True, slots=True)
class Feature:
    """All that a harvest finds of one feature."""

    feature: int
    activity: Activity
    windows: tuple[Window, ...]
    """The strongest first, then those of the intervals."""
    peak_tokens: tuple[tuple[int, int], ...]
    """Token ids at which it peaked within a window of text, and how often; the most frequent first."""
    promoted: tuple[tuple[int, float], ...]
    """Token ids whose logits its direction raises most, with how much in standard deviations over the vocabulary."""
    suppressed: tuple[tuple[int, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    """Features of the same dictionary with the nearest directions, and the cosine."""
    labels: tuple[Label, ...] = ()
    """Automatic ones."""

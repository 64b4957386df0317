"""What a feature store returns, as data. No torch."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steerserve.model.names import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from steerserve.store.records import Calibration, FeatureRecord, Label, TextSnippet


@dataclass(frozen=True, slots=True)
class StoreMeta:
    """Which dictionary a feature store describes, and what it was made from."""

    dictionary_sha256: str
    """SHA-256 of the dictionary's weights file."""
    d_sae: int
    """Number of features of the dictionary."""
    model: str
    """Model that the dictionary was used with; empty if unknown."""
    num_tokens: int = 0
    """Number of tokens that the scan read, without special tokens and sinks; 0 if no text was read."""
    sources: tuple[str, ...] = ()
    """Sources of the text."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the programs that made the store."""
    created: float = 0.0
    """Unix time in seconds."""
    contents: str | None = None
    """SHA-256 of the dictionary's weights, configuration and norms; None if it was not recorded."""

    @property
    def subject(self) -> Subject:
        """The dictionary and model that the store describes."""
        return Subject(self.dictionary_sha256, self.model, contents=self.contents)


@dataclass(frozen=True, slots=True)
class Subject:
    """A dictionary together with the model that it is used with: what a feature store describes."""

    sha256: str
    """SHA-256 of the dictionary's weights file."""
    model: str = ""
    """Model that the dictionary is used with; empty if unknown."""
    other_names: tuple[str, ...] = ()
    """Other names of the same model."""
    contents: str | None = None
    """SHA-256 of the dictionary's weights, configuration and norms; None if unknown."""

    def matches(self, meta: StoreMeta) -> bool:
        """Tell whether measurements described by `meta` hold for this subject. What is unknown matches anything."""
        names = {plain_name(name) for name in (self.model, *self.other_names) if name}
        return (
            meta.dictionary_sha256 == self.sha256
            and (not meta.model or not names or plain_name(meta.model) in names)
            and (meta.contents is None or self.contents in {None, meta.contents})
        )


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """How much a feature store holds."""

    num_features: int
    """Number of features with statistics, dead ones included."""
    num_live: int
    """Number of features that were active at all."""
    num_labelled: int
    """Number of features with a label."""
    num_calibrated: int
    """Number of features with a calibration."""


@dataclass(frozen=True, slots=True)
class StoredFeature:
    """Everything that a feature store holds about one feature."""

    feature: int
    """Index of the feature."""
    record: FeatureRecord | None
    """What the interpretation recorded; None if the feature has only a label or a calibration."""
    calibration: Calibration | None
    """Its calibration; None if it was not calibrated."""
    label: Label | None
    """The label that wins; None if it has no label."""
    labels: tuple[Label, ...]
    """The current label of each origin, the winner first."""
    token_bytes: Mapping[int, bytes]
    """Bytes of every token id in `record`; a character may span several tokens."""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One row of a search."""

    feature: int
    """Index of the feature."""
    label: Label | None
    """The label that wins; None if it has no label."""
    density: float | None
    """Share of the tokens at which it was active; None if the store has no statistics."""
    maximum: float | None
    """Largest activation; None if the store has no statistics."""
    calibration: Calibration | None
    """Its calibration; None if it was not calibrated."""
    relevance: float | None
    """Score of the match; None if the query is empty."""
    snippet: TextSnippet | None
    """The strongest snippet; None if there are no snippets."""
    promoted: tuple[int, ...]
    """Token ids that it promotes most."""
    token_bytes: Mapping[int, bytes]
    """Bytes of all token ids in the snippet and in `promoted`, possibly of others too."""


def token_texts(token_ids: Iterable[int], token_bytes: Mapping[int, bytes]) -> list[str]:
    """Return the text of each token; a character that spans several tokens is written at the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(token_bytes[token_id]) for token_id in token_ids]

"""What a feature store gives back, as data. No torch."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steerserve.model.names import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from steerserve.store.records import Calibration, Feature, Label, Window


@dataclass(frozen=True, slots=True)
class StoreMeta:
    """Which dictionary a store is about, and what it was made from."""

    dictionary_sha256: str
    """Of the weight file."""
    d_sae: int
    model: str
    num_tokens: int = 0
    """Tokens that the harvest read, special ones and sinks left out; 0 for a store that holds labels alone."""
    sources: tuple[str, ...] = ()
    """Where the text came from."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the programs that made it."""
    created: float = 0.0
    """Unix time in seconds."""
    contents: str | None = None
    """Of the dictionary: its weights, configuration and norms; None where nobody wrote it down."""

    @property
    def subject(self) -> Subject:
        """What the store is about."""
        return Subject(self.dictionary_sha256, self.model, contents=self.contents)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a store has to be about to say something of a dictionary: its weights, and what reads with them."""

    sha256: str
    """Of the weights."""
    model: str = ""
    """The model that the dictionary is used with; empty where that is not known."""
    other_names: tuple[str, ...] = ()
    """Of the same model."""
    contents: str | None = None
    """Of the dictionary; None where they are not known."""

    def is_that_of(self, meta: StoreMeta) -> bool:
        """Tell whether what was measured for `meta` holds here; what is not known on either side is no objection."""
        names = {plain_name(name) for name in (self.model, *self.other_names) if name}
        return (
            meta.dictionary_sha256 == self.sha256
            and (not meta.model or not names or plain_name(meta.model) in names)
            and (meta.contents is None or self.contents in {None, meta.contents})
        )


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """How much a store holds."""

    num_features: int
    """Features that the harvest wrote, dead ones included."""
    num_live: int
    """Of these, the ones that were active at all."""
    num_labelled: int
    num_calibrated: int


@dataclass(frozen=True, slots=True)
class StoredFeature:
    """All that is known of one feature."""

    feature: int
    harvested: Feature | None
    """None where it has no more than a label or a calibration."""
    calibration: Calibration | None
    label: Label | None
    """The one that wins."""
    labels: tuple[Label, ...]
    """The current one of each origin, the winner first."""
    token_bytes: Mapping[int, bytes]
    """What every token id of `harvested` stands for; a character may be spread over several."""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One row of a search."""

    feature: int
    label: Label | None
    density: float | None
    """None where there was no harvest, as for `maximum`."""
    maximum: float | None
    calibration: Calibration | None
    relevance: float | None
    """None where nothing was searched for."""
    example: Window | None
    """The strongest window."""
    promoted: tuple[int, ...]
    """Token ids that it promotes most."""
    token_bytes: Mapping[int, bytes]
    """What the token ids of the example and of `promoted` stand for, among others."""


def token_texts(token_ids: Iterable[int], token_bytes: Mapping[int, bytes]) -> list[str]:
    """Return the text of each token of a piece; a character of several tokens is written at the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(token_bytes[token_id]) for token_id in token_ids]

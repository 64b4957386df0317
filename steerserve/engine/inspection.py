"""What a text activates: the strongest features of every token, and of the text as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from steerserve.engine.readings import encode_kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.readings import Span

Skipped = Literal["special", "sink"]


@dataclass(frozen=True, slots=True)
class TokenFeatures:
    """What one dictionary reads at one token."""

    top: tuple[tuple[int, float], ...]
    """Features and activations, the strongest first; only those that are active."""
    watch: tuple[float, ...]
    """Activations of the features that were asked for."""
    skipped: Skipped | None = None
    """Why the dictionary does not read it: it never learned such tokens."""


@dataclass(frozen=True, slots=True)
class TextFeature:
    """A feature over a whole text."""

    feature: int
    activation: float
    """The largest."""
    position: int
    """Of the token where it is largest."""
    mean_activation: float
    """Over all tokens that are read."""
    tokens_active: int


class Inspection:
    """One dictionary's reading of one text, filled span by span on the engine's thread."""

    def __init__(self, dictionary: Dictionary, *, top: int, watch: Sequence[int], special_ids: frozenset[int]) -> None:
        """Keep the `top` strongest features of each token, and those in `watch`."""
        self.dictionary = dictionary
        self.tokens: list[TokenFeatures] = []
        self._top = min(top, dictionary.d_sae)
        self._watch = list(watch)
        self._special_ids = special_ids
        self._num_read = 0
        device = dictionary.sae.W_dec.device
        self._largest = torch.zeros(dictionary.d_sae, device=device)
        self._sums = torch.zeros(dictionary.d_sae, device=device)
        self._counts = torch.zeros(dictionary.d_sae, dtype=torch.long, device=device)
        self._positions = torch.zeros(dictionary.d_sae, dtype=torch.long, device=device)

    def take(self, span: Span) -> None:
        """Read the text's next tokens. Engine thread only."""
        keep, parts = encode_kept(self.dictionary, span, self._special_ids)
        places = keep.nonzero().squeeze(1) + span.start
        read: list[TokenFeatures] = []
        for acts in parts:
            self._count(acts, places[len(read) : len(read) + len(acts)])
            read += self._strongest_of_tokens(acts)
        tokens = iter(read)
        for token_id, is_kept in zip(span.ids, keep.tolist(), strict=True):
            self.tokens.append(next(tokens) if is_kept else self._skipped(token_id))

    def strongest(self) -> list[TextFeature]:
        """Return the features that are largest anywhere in the text."""
        found = self._largest.abs().topk(self._top)
        return [
            TextFeature(
                feature=feature,
                activation=float(self._largest[feature]),
                position=int(self._positions[feature]),
                mean_activation=float(self._sums[feature]) / self._num_read,
                tokens_active=int(self._counts[feature]),
            )
            for feature, size in zip(found.indices.tolist(), found.values.tolist(), strict=True)
            if size > 0
        ]

    def _count(self, acts: Float[Tensor, "tokens d_sae"], places: Tensor) -> None:
        self._num_read += len(acts)
        self._sums += acts.sum(0)
        self._counts += (acts != 0).sum(0)
        at = acts.abs().argmax(0)
        largest = acts.gather(0, at[None])[0]
        is_larger = largest.abs() > self._largest.abs()
        self._largest = torch.where(is_larger, largest, self._largest)
        self._positions = torch.where(is_larger, places[at], self._positions)

    def _strongest_of_tokens(self, acts: Float[Tensor, "tokens d_sae"]) -> list[TokenFeatures]:
        features = acts.abs().topk(self._top, dim=-1).indices
        values = acts.gather(-1, features)
        watched = acts[:, self._watch]
        return [
            TokenFeatures(
                tuple((feature, value) for feature, value in zip(*row, strict=True) if value != 0), tuple(watch)
            )
            for *row, watch in zip(features.tolist(), values.tolist(), watched.tolist(), strict=True)
        ]

    def _skipped(self, token_id: int) -> TokenFeatures:
        kind: Skipped = "special" if token_id in self._special_ids else "sink"
        return TokenFeatures((), (0.0,) * len(self._watch), kind)

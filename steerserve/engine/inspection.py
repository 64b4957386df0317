"""What a text activates: the strongest features of every token, and of the text as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from steerserve.engine.readings import encode_counted, pack_readings, skipped_reading, unpack_reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.readings import Span
    from steerserve.engine.request import FeatureReading


@dataclass(frozen=True, slots=True)
class TextFeature:
    """A feature over a whole text."""

    feature: int
    activation: float
    """The largest activation in the text."""
    position: int
    """Position of the token with the largest activation."""
    mean_activation: float
    """Mean activation over all tokens that count."""
    tokens_active: int


class Inspection:
    """One dictionary's readings of one text, filled span by span on the engine's thread."""

    def __init__(self, dictionary: Dictionary, *, top: int, watch: Sequence[int], special_ids: frozenset[int]) -> None:
        """Keep the `top` strongest features of each token, and those in `watch`."""
        self.dictionary = dictionary
        self.tokens: list[FeatureReading] = []
        """Reading of each token so far."""
        device = dictionary.sae.W_dec.device
        self._top = min(top, dictionary.d_sae)
        self._watch = torch.tensor([watch], dtype=torch.long, device=device)
        self._special_ids = special_ids
        self._num_counted = 0
        self._largest = torch.zeros(dictionary.d_sae, device=device)
        self._sums = torch.zeros(dictionary.d_sae, device=device)
        self._counts = torch.zeros(dictionary.d_sae, dtype=torch.long, device=device)
        self._positions = torch.zeros(dictionary.d_sae, dtype=torch.long, device=device)

    def take(self, span: Span) -> None:
        """Read the text's next tokens. Engine thread only."""
        counted, parts = encode_counted(self.dictionary, span, self._special_ids)
        positions = counted.nonzero().squeeze(1) + span.start
        num_watched = self._watch.shape[1]
        readings: list[FeatureReading] = []
        for acts in parts:
            self._count(acts, positions[len(readings) : len(readings) + len(acts)])
            packed = pack_readings(acts, self._top, self._watch.expand(len(acts), -1)).tolist()
            readings += [unpack_reading(numbers, self._top, self._top, num_watched) for numbers in packed]
        following = iter(readings)
        for token_id, is_counted in zip(span.ids, counted.tolist(), strict=True):
            skipped = skipped_reading(num_watched, is_special=token_id in self._special_ids)
            self.tokens.append(next(following) if is_counted else skipped)

    def strongest(self) -> list[TextFeature]:
        """Return the features with the largest activations in the text."""
        largest = self._largest.abs().topk(self._top)
        return [
            TextFeature(
                feature=feature,
                activation=float(self._largest[feature]),
                position=int(self._positions[feature]),
                mean_activation=float(self._sums[feature]) / self._num_counted,
                tokens_active=int(self._counts[feature]),
            )
            for feature, size in zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
            if size > 0
        ]

    def _count(self, acts: Float[Tensor, "tokens d_sae"], positions: Int[Tensor, " tokens"]) -> None:
        self._num_counted += len(acts)
        self._sums += acts.sum(0)
        self._counts += (acts != 0).sum(0)
        tokens = acts.abs().argmax(0)
        largest = acts.gather(0, tokens[None])[0]
        is_larger = largest.abs() > self._largest.abs()
        self._largest = torch.where(is_larger, largest, self._largest)
        self._positions = torch.where(is_larger, positions[tokens], self._positions)

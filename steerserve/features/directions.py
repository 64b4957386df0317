"""What a feature's direction says by itself, without any text: the tokens it promotes, and its nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from steerserve.model.hook_names import HOOK_Z
from steerserve.training.observer import StoppedError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.model.lens import LensModel
    from steerserve.training.observer import Observer

    Pairs = tuple[tuple[int, float], ...]

NUM_PROMOTED = 20
NUM_SUPPRESSED = 10
NUM_NEIGHBOURS = 10
_CHUNK = 256
"""Features whose logits lie side by side."""


class DirectionFacts(NamedTuple):
    """What one direction says, as `records.Feature` has it."""

    promoted: Pairs
    suppressed: Pairs
    neighbours: Pairs


@torch.no_grad()
def direction_facts(lens: LensModel, dictionary: Dictionary, observer: Observer) -> list[DirectionFacts]:
    """Return what each feature's direction says, in order.

    A dictionary of a place whose vectors are no part of the residual stream promotes nothing.

    Raises:
        StoppedError: the observer asked for it.
    """
    everything = torch.arange(dictionary.d_sae, device=dictionary.sae.W_dec.device)
    directions = torch.nn.functional.normalize(dictionary.directions(everything), dim=-1)
    is_stream = not dictionary.hook_name.endswith(HOOK_Z)  # the heads' outputs are mixed before they are added to it
    writes = is_stream and dictionary.d_in == lens.unembedding.width
    found: list[DirectionFacts] = []
    with observer.stage("Reading directions", dictionary.d_sae) as progress:
        for features in everything.split(_CHUNK):
            rows = directions[features]
            neighbours = _neighbours(directions, features)
            scores = _promotion(lens, rows) if writes else rows[:, :0]
            promoted, suppressed = _highest(scores, NUM_PROMOTED), _highest(-scores, NUM_SUPPRESSED)
            for place, feature in enumerate(features.tolist()):
                if feature in dictionary.zero_directions:
                    found.append(DirectionFacts((), (), ()))
                    continue
                lowest = tuple((token_id, -score) for token_id, score in suppressed[place])
                found.append(DirectionFacts(promoted[place], lowest, neighbours[place]))
            progress.update(len(found))
            if observer.should_stop():
                message = "Stopped while reading directions; the same call goes on from what was read of the text."
                raise StoppedError(message)
    return found


def _promotion(lens: LensModel, directions: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
    """Return what directions add to each token's logit, in standard deviations over the vocabulary."""
    logits = lens.unembed(directions)[:, : lens.tokenizer.vocab_size]
    return (logits - logits.mean(dim=1, keepdim=True)) / logits.std(dim=1, keepdim=True)


def _neighbours(directions: Float[Tensor, "d_sae d_in"], features: Tensor) -> list[Pairs]:
    cosines = directions[features] @ directions.T
    cosines[torch.arange(len(features), device=features.device), features] = -torch.inf
    return [tuple(pair for pair in pairs if pair[1] > 0) for pairs in _highest(cosines, NUM_NEIGHBOURS)]


def _highest(scores: Float[Tensor, "rows columns"], count: int) -> list[Pairs]:
    values, columns = scores.topk(min(count, scores.shape[1]), dim=1)
    return [tuple(zip(*row, strict=True)) for row in zip(columns.tolist(), values.tolist(), strict=True)]

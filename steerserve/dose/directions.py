"""What a feature's direction says by itself, without any text: the tokens it promotes, and its nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from steerserve.core.observer import StoppedError
from steerserve.model.names import HOOK_Z

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from steerserve.core.observer import Observer
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.model.lens import LensModel

    Pairs = tuple[tuple[int, float], ...]

NUM_PROMOTED = 20
NUM_SUPPRESSED = 10
NUM_NEIGHBOURS = 10
_CHUNK = 256
"""Features whose logits lie side by side."""


class DirectionFacts(NamedTuple):
    """What one direction says, as `records.FeatureRecord` has it."""

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
    writes = is_stream and dictionary.d_out == lens.unembedding.width
    found: list[DirectionFacts] = []
    with observer.stage("Reading directions", dictionary.d_sae) as progress:
        for features in everything.split(_CHUNK):
            rows = directions[features]
            neighbours = _neighbours(directions, features)
            logits = lens.unembed(rows)[:, : lens.tokenizer.vocab_size] if writes else rows[:, :0]
            promoted, suppressed = (_extreme(logits, NUM_PROMOTED, 1), _extreme(logits, NUM_SUPPRESSED, -1))
            for place, feature in enumerate(features.tolist()):
                if feature in dictionary.zero_directions:
                    found.append(DirectionFacts((), (), ()))
                    continue
                found.append(DirectionFacts(promoted[place], suppressed[place], neighbours[place]))
            progress.update(len(found))
            if observer.should_stop():
                message = "Stopped while reading directions; the same call goes on from what was read of the text."
                raise StoppedError(message)
    return found


def _extreme(logits: Float[Tensor, "rows vocab"], count: int, sign: int) -> list[Pairs]:
    """Return the tokens of the highest logits, or with -1 the lowest, in standard deviations over the vocabulary."""
    size = logits.shape[1]
    values, token_ids = logits.topk(min(count, size), dim=1, largest=sign > 0)
    mean = logits.mean(dim=1, keepdim=True)
    # As tensor.std computes it, several times as fast.
    square = logits.norm(dim=1, keepdim=True).square()
    std = ((square - size * mean.square()) / max(size - 1, 1)).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return _pairs(token_ids, (values - mean) / std)


def _neighbours(directions: Float[Tensor, "d_sae d_out"], features: Tensor) -> list[Pairs]:
    cosines = directions[features] @ directions.T
    cosines[torch.arange(len(features), device=features.device), features] = -torch.inf
    found = cosines.topk(min(NUM_NEIGHBOURS, cosines.shape[1]), dim=1)
    return [tuple(pair for pair in pairs if pair[1] > 0) for pairs in _pairs(found.indices, found.values)]


def _pairs(columns: Int[Tensor, "rows count"], values: Float[Tensor, "rows count"]) -> list[Pairs]:
    return [tuple(zip(*row, strict=True)) for row in zip(columns.tolist(), values.tolist(), strict=True)]

"""Facts about a feature's direction that need no text: the tokens that it promotes, and its nearest neighbours."""

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
"""Promoted tokens of a feature."""
NUM_SUPPRESSED = 10
"""Suppressed tokens of a feature."""
NUM_NEIGHBOURS = 10
"""Nearest features of a feature."""
_CHUNK = 256
"""Features whose logits are in memory at once."""


class DirectionFacts(NamedTuple):
    """Facts about one direction, as in `FeatureRecord`."""

    promoted: Pairs
    suppressed: Pairs
    neighbours: Pairs


@torch.no_grad()
def direction_facts(lens: LensModel, dictionary: Dictionary, observer: Observer) -> list[DirectionFacts]:
    """Return the facts about each feature's direction, in order.

    A dictionary that does not write to the residual stream promotes no tokens.

    Raises:
        StoppedError: the observer requested a stop.
    """
    all_features = torch.arange(dictionary.d_sae, device=dictionary.sae.W_dec.device)
    directions = torch.nn.functional.normalize(dictionary.directions(all_features), dim=-1)
    is_stream = not dictionary.hook_name.endswith(HOOK_Z)  # heads' outputs are mixed before they are added
    writes_stream = is_stream and dictionary.d_out == lens.unembedding.width
    facts: list[DirectionFacts] = []
    with observer.stage("Reading directions", dictionary.d_sae) as progress:
        for features in all_features.split(_CHUNK):
            rows = directions[features]
            neighbours = _neighbours(directions, features)
            logits = lens.unembed(rows)[:, : lens.tokenizer.vocab_size] if writes_stream else rows[:, :0]
            promoted, suppressed = (_extreme(logits, NUM_PROMOTED, 1), _extreme(logits, NUM_SUPPRESSED, -1))
            for index, feature in enumerate(features.tolist()):
                if feature in dictionary.zero_directions:
                    facts.append(DirectionFacts((), (), ()))
                    continue
                facts.append(DirectionFacts(promoted[index], suppressed[index], neighbours[index]))
            progress.update(len(facts))
            if observer.should_stop():
                message = "Stopped while reading directions. Make the same call again: the text is not scanned again."
                raise StoppedError(message)
    return facts


def _extreme(logits: Float[Tensor, "rows vocab"], count: int, sign: int) -> list[Pairs]:
    """Return the tokens with the highest logits (lowest for -1), in standard deviations over the vocabulary."""
    size = logits.shape[1]
    values, token_ids = logits.topk(min(count, size), dim=1, largest=sign > 0)
    mean = logits.mean(dim=1, keepdim=True)
    # The same as tensor.std, several times as fast.
    square = logits.norm(dim=1, keepdim=True).square()
    std = ((square - size * mean.square()) / max(size - 1, 1)).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return _pairs(token_ids, (values - mean) / std)


def _neighbours(directions: Float[Tensor, "d_sae d_out"], features: Tensor) -> list[Pairs]:
    cosines = directions[features] @ directions.T
    cosines[torch.arange(len(features), device=features.device), features] = -torch.inf
    nearest = cosines.topk(min(NUM_NEIGHBOURS, cosines.shape[1]), dim=1)
    return [tuple(pair for pair in pairs if pair[1] > 0) for pairs in _pairs(nearest.indices, nearest.values)]


def _pairs(columns: Int[Tensor, "rows count"], values: Float[Tensor, "rows count"]) -> list[Pairs]:
    return [tuple(zip(*row, strict=True)) for row in zip(columns.tolist(), values.tolist(), strict=True)]

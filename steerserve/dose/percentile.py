"""A percentile of few numbers, with less noise than the single number at that rank."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import betainc

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

_NUM_DRAWS = 100
_SEED = 11


def percentile(values: Float[Tensor, "rows values"], share: float) -> Float[Tensor, " rows"]:
    """Return the value below which `share` of each row's distribution lies, as a weighted mean of the sorted values.

    Source: Harrell and Davis 1982, A new distribution-free quantile estimator.
    """
    weights = _weights(values.shape[-1], share).to(values.device)
    estimate: Tensor = values.double().sort(dim=-1).values @ weights
    return estimate.to(values.dtype)


def spread(
    values: Float[Tensor, "rows values"], groups: Int[Tensor, " values"], share: float
) -> Float[Tensor, " rows"]:
    """Return the standard deviation of the logarithm of each row's percentile over other groups of values like these.

    Source: Efron 1979, the bootstrap, drawing whole groups: values of one group are alike.
    """
    generator = torch.Generator().manual_seed(_SEED)
    members = [(groups == group).nonzero()[:, 0] for group in groups.unique()]
    draws = []
    for _ in range(_NUM_DRAWS):
        drawn = torch.randint(len(members), (len(members),), generator=generator).tolist()
        columns = torch.cat([members[group] for group in drawn])
        draws.append(values[:, columns].quantile(share, dim=-1).log())
    return torch.stack(draws).std(dim=0)


@functools.lru_cache(maxsize=8)
def _weights(count: int, share: float) -> Float[Tensor, " values"]:
    """Return the mass of the beta distribution in each of `count` equal intervals."""
    edges = np.arange(count + 1) / count
    return torch.from_numpy(np.diff(betainc((count + 1) * share, (count + 1) * (1 - share), edges)))

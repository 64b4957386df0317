"""Counts how often and how strongly each feature is active, while the text streams by.

A histogram has 512 bins from 0 to a power of two above the maximum. If the maximum grows beyond it, bins are joined,
which is exact: the counts do not depend on the order of the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from steerserve.store.records import Activity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

NUM_BINS = 64
"""Bins of the histograms in `Activity`."""
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)
_FINE_BITS = 9
_FINE_BINS = 2**_FINE_BITS
_LEAST_EXPONENT = -100
"""Least exponent of a histogram's end; a division by less would overflow."""
_NO_EXPONENT = -(2**15)


class Spread:
    """Counts of one dictionary's features; takes the same memory for any text."""

    def __init__(self, d_sae: int, device: torch.device) -> None:
        """Begin without tokens."""
        self.num_tokens = torch.zeros((), dtype=torch.long)
        self.num_active = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.total = torch.zeros(d_sae, dtype=torch.double, device=device)
        self.maximum = torch.zeros(d_sae, device=device)
        self.exponent = torch.full((d_sae,), _NO_EXPONENT, dtype=torch.int32, device=device)
        """Exponents of two at which the histograms end."""
        self.counts = torch.zeros(d_sae, _FINE_BINS, dtype=torch.int32, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, for a checkpoint to save or fill."""
        return {
            "num_tokens": self.num_tokens,
            "num_active": self.num_active,
            "total": self.total,
            "maximum": self.maximum,
            "exponent": self.exponent,
            "counts": self.counts,
        }

    def add(
        self, num_tokens: int, feature: Int[Tensor, " active"], act: Float[Tensor, " active"]
    ) -> Bool[Tensor, " d_sae"]:
        """Count activations over 0 of some tokens; return for which features the maximum has grown."""
        d_sae = len(self.maximum)
        self.num_tokens += num_tokens
        self.num_active += torch.bincount(feature, minlength=d_sae)
        self.total += torch.bincount(feature, weights=act.double(), minlength=d_sae)
        before = self.maximum.clone()
        self.maximum.scatter_reduce_(0, feature, act, "amax")
        self._widen()
        fine_bin = torch.ldexp(act, _FINE_BITS - self.exponent[feature]).long()
        ones = torch.ones_like(fine_bin, dtype=torch.int32)
        self.counts.view(-1).scatter_add_(0, feature * _FINE_BINS + fine_bin, ones)
        return self.maximum > before

    def activities(self) -> Iterator[Activity]:
        """Yield the statistics of each feature, in order."""
        num_tokens = int(self.num_tokens)
        quantiles, histograms = self._quantiles().tolist(), self._histograms().tolist()
        means = (self.total / self.num_active.clamp(min=1)).tolist()
        rows = zip(self.num_active.tolist(), self.maximum.tolist(), means, quantiles, histograms, strict=True)
        for num_active, maximum, mean, quantile, histogram in rows:
            yield Activity(num_tokens, num_active, maximum, mean, tuple(quantile), tuple(histogram))

    def _widen(self) -> None:
        """Join bins of histograms whose end the maximum has passed."""
        exponent = torch.frexp(self.maximum).exponent.int().clamp(min=_LEAST_EXPONENT)
        grown = ((self.maximum > 0) & (exponent > self.exponent)).nonzero().flatten()
        shift = (exponent - self.exponent)[grown].clamp(max=_FINE_BITS)
        new_bin = torch.arange(_FINE_BINS, device=grown.device) >> shift[:, None]
        joined = torch.zeros_like(self.counts[grown])
        self.counts[grown] = joined.scatter_add_(1, new_bin, self.counts[grown])
        self.exponent[grown] = exponent[grown]

    def _counts_below(self) -> Float[Tensor, "d_sae edges"]:
        """Return the number of activations below each edge of the fine bins."""
        return torch.nn.functional.pad(self.counts.double().cumsum(dim=1), (1, 0))

    def _maximum_bins(self) -> Float[Tensor, " d_sae"]:
        """Return each maximum in units of fine bins."""
        return torch.ldexp(self.maximum.double(), _FINE_BITS - self.exponent)

    def _histograms(self) -> Int[Tensor, "d_sae bins"]:
        """Return counts in equal bins up to the maximum; an edge within a fine bin divides its count in proportion."""
        counts_below, end = self._counts_below(), self._maximum_bins()[:, None]
        edge = end * torch.arange(NUM_BINS + 1, device=end.device) / NUM_BINS
        low = edge.long().clamp(max=_FINE_BINS - 1)
        width = torch.minimum(low + 1.0, end) - low  # the last bin ends at the maximum
        share = ((edge - low) / width.clamp(min=torch.finfo(torch.double).tiny)).clamp(max=1.0)
        below = torch.lerp(counts_below.gather(1, low), counts_below.gather(1, low + 1), share).round()
        below[:, -1] = counts_below[:, -1]
        return below.diff(dim=1).long()

    def _quantiles(self) -> Float[Tensor, "d_sae quantiles"]:
        """Return quantiles, interpolated within a fine bin."""
        counts_below, end = self._counts_below(), self._maximum_bins()[:, None]
        ranks = self.num_active[:, None] * torch.tensor(QUANTILES, dtype=torch.double, device=end.device)
        low = (torch.searchsorted(counts_below, ranks.contiguous()) - 1).clamp(0, _FINE_BINS - 1)
        before = counts_below.gather(1, low)
        share = (ranks - before) / (counts_below.gather(1, low + 1) - before).clamp(min=1.0)
        bins = torch.lerp(low.double(), torch.minimum(low + 1.0, end), share)
        return torch.where(self.num_active[:, None] > 0, torch.ldexp(bins, self.exponent[:, None] - _FINE_BITS), 0.0)

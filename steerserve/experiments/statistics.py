"""Means with percentile bootstrap intervals. Knows numbers, not experiments.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 13.3 (percentile interval) and 8.3
(resampling the units that are independent, here prompts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from jaxtyping import Float
    from numpy.typing import NDArray

NUM_RESAMPLES = 4000
LEVEL = 0.95
SEED = 0
MIN_UNITS = 3
"""With fewer there is no interval: it would be the two values themselves."""
_MAX_DRAWN = 1 << 22
"""Units drawn at once, over some of the resamples."""

Resampled = Literal["prompts", "samples"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and how far it may be from that of all prompts or samples like these."""

    mean: float
    num_values: int
    low: float | None = None
    high: float | None = None
    """None where there are too few values for an interval."""
    resampled: Resampled | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is above or below 0 as a whole."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def is_zero(self) -> bool:
        """Whether all values are 0: then there is nothing to draw an interval around."""
        return self.mean == 0 and self.low in {None, 0} and self.high in {None, 0}


def estimate(values: Sequence[float], prompts: Sequence[Hashable], *, seed: int = SEED) -> Estimate | None:
    """Return the mean of values, or of paired differences, with its interval; None without any.

    Samples of one prompt are alike, so prompts are what is drawn, each with all its samples, where there are three of
    them at least. With one prompt or two the samples are drawn, and the interval speaks of those prompts alone.

    Args:
        values: Finite numbers.
        prompts: Which prompt each is of.
        seed: Of the resampling.
    """
    if not values:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    names = {name: place for place, name in enumerate(dict.fromkeys(prompts))}
    by_prompt = len(names) >= MIN_UNITS
    units = np.array([names[name] for name in prompts]) if by_prompt else np.arange(len(numbers))
    sums = np.bincount(units, weights=numbers).astype(np.float64)
    counts = np.bincount(units).astype(np.float64)
    mean = float(numbers.mean())
    if len(sums) < MIN_UNITS:
        return Estimate(mean, len(numbers))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(_resampled_means(sums, counts, seed), (tail, 1 - tail))
    if np.ptp(numbers) == 0:  # no rounding where all say the same
        low = high = mean
    return Estimate(mean, len(numbers), float(low), float(high), "prompts" if by_prompt else "samples")


def _resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int
) -> Float[NDArray[np.float64], " resamples"]:
    """Return the mean of each resample, in blocks that keep the memory small."""
    generator = np.random.default_rng(seed)
    num_units = len(sums)
    block = max(1, _MAX_DRAWN // num_units)
    means = []
    for start in range(0, NUM_RESAMPLES, block):
        # How often each unit is drawn, a row for each resample: the same as drawing places, and one matrix product.
        size = min(block, NUM_RESAMPLES - start)
        drawn = generator.multinomial(num_units, np.full(num_units, 1 / num_units), size=size)
        means.append((drawn @ sums) / (drawn @ counts))
    return np.concatenate(means)

"""Means with 95 % intervals over prompts. Knows numbers, not experiments.

Samples of one prompt are alike, so prompts are the units. From 20 of them on the interval is a percentile bootstrap
that draws prompts. Of fewer it is Student's t on their means: a percentile bootstrap of 4 leaves out the truth in 18 %
of the cases, for it has neither the variance's missing n / (n - 1) nor the t distribution's tails.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 13.3 (percentile interval) and 8.3
(resampling the units that are independent, here prompts); Cochran, Sampling Techniques (1977), section 6.3 (the
variance of a mean over clusters that may differ in size).
"""

from __future__ import annotations

import math
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
MIN_PROMPTS = 3
"""With fewer there is no interval: it would hold for those prompts alone, or be too wide to say anything."""
MIN_BOOTSTRAPPED = 20
"""Prompts from which on they are drawn."""
ANY_NUMBER = (-math.inf, math.inf)
_MAX_DRAWN = 1 << 22
"""Prompts drawn at once, over some of the resamples."""
_T_QUANTILES = (
    *(4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922),
)
"""Of 0.975, for `MIN_PROMPTS` - 1 degrees of freedom and more; numpy has none, and scipy is no dependency."""

Method = Literal["t", "bootstrap"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and how far it may be from that of all prompts like these."""

    mean: float
    num_values: int
    num_prompts: int
    low: float | None = None
    high: float | None = None
    """None where there are too few prompts for an interval."""
    method: Method | None = None
    """How the interval was made."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is above or below 0 as a whole."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def is_zero(self) -> bool:
        """Whether all values are 0: then there is nothing to draw an interval around."""
        return self.mean == 0 and self.low in {None, 0} and self.high in {None, 0}


def estimate(
    values: Sequence[float],
    prompts: Sequence[Hashable],
    *,
    bounds: tuple[float, float] = ANY_NUMBER,
    seed: int = SEED,
) -> Estimate | None:
    """Return the mean of values, or of paired differences, with its interval; None without any.

    Args:
        values: Finite numbers.
        prompts: Which prompt each is of.
        bounds: What a value can be; the interval does not go over them.
        seed: Of the resampling.
    """
    if not values:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    places = {name: place for place, name in enumerate(dict.fromkeys(prompts))}
    units = np.array([places[name] for name in prompts])
    sums = np.bincount(units, weights=numbers).astype(np.float64)
    counts = np.bincount(units).astype(np.float64)
    mean, num_prompts = float(numbers.mean()), len(places)
    if num_prompts < MIN_PROMPTS:
        return Estimate(mean, len(numbers), num_prompts)
    method: Method = "t" if num_prompts < MIN_BOOTSTRAPPED else "bootstrap"
    if np.ptp(numbers) == 0:  # no rounding where all say the same
        return Estimate(mean, len(numbers), num_prompts, mean, mean, method)
    low, high = _t_interval(sums, counts) if method == "t" else _bootstrap_interval(sums, counts, seed)
    return Estimate(mean, len(numbers), num_prompts, max(low, bounds[0]), min(high, bounds[1]), method)


def _t_interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """Return Student's interval; where prompts have equally many values, that of the prompts' means."""
    num_prompts, total = len(sums), counts.sum()
    mean = sums.sum() / total
    squares = float(np.square(sums - mean * counts).sum())
    error = math.sqrt(num_prompts / (num_prompts - 1) * squares) / total
    reach = _T_QUANTILES[num_prompts - MIN_PROMPTS] * error
    return float(mean - reach), float(mean + reach)


def _bootstrap_interval(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(_resampled_means(sums, counts, seed), (tail, 1 - tail))
    return float(low), float(high)


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

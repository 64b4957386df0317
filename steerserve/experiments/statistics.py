"""Means with 95 % intervals over prompts. Knows numbers, not experiments.

Samples of one prompt are alike, so prompts are the units. From 20 of them on the interval is a percentile bootstrap
that draws prompts. With fewer prompts it is Student's t interval: with 4 prompts a 95 % percentile bootstrap misses
the true mean in 18 % of cases, since it lacks the variance's factor n / (n - 1) and the tails of the t distribution.

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
"""Smallest number of prompts for an interval; with one it says nothing about other prompts, with two it is too wide."""
MIN_BOOTSTRAPPED = 20
"""Smallest number of prompts for the bootstrap."""
ANY_NUMBER = (-math.inf, math.inf)
_MAX_DRAWN = 1 << 22
"""Largest number of prompts that are drawn at once."""

Method = Literal["t", "bootstrap"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, with an interval for the mean over all prompts like these."""

    mean: float
    num_values: int
    num_prompts: int
    low: float | None = None
    """Lower end of the interval; None if there are too few prompts for an interval."""
    high: float | None = None
    """Upper end of the interval; None like `low`."""
    method: Method | None = None
    """How the interval was made; None without one."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is above 0, or below 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def is_zero(self) -> bool:
        """Whether the mean is 0 with an interval of no width, so all values are 0."""
        return self.mean == 0 and self.low in {None, 0} and self.high in {None, 0}


def estimate(
    values: Sequence[float],
    prompts: Sequence[Hashable],
    *,
    bounds: tuple[float, float] = ANY_NUMBER,
    seed: int = SEED,
) -> Estimate | None:
    """Return the mean of values, or of paired differences, with its interval; None without values.

    Args:
        values: Finite numbers.
        prompts: The prompt of each value.
        bounds: Smallest and largest possible value; the interval stays within them.
        seed: Seed of the resampling.
    """
    if not values:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    indices = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    units = np.array([indices[prompt] for prompt in prompts])
    sums = np.bincount(units, weights=numbers).astype(np.float64)
    counts = np.bincount(units).astype(np.float64)
    mean, num_prompts = float(numbers.mean()), len(indices)
    if num_prompts < MIN_PROMPTS:
        return Estimate(mean, len(numbers), num_prompts)
    method: Method = "t" if num_prompts < MIN_BOOTSTRAPPED else "bootstrap"
    if np.ptp(numbers) == 0:  # return equal values exactly; the formulas could add rounding errors
        return Estimate(mean, len(numbers), num_prompts, mean, mean, method)
    low, high = _t_interval(sums, counts) if method == "t" else _bootstrap_interval(sums, counts, seed)
    return Estimate(mean, len(numbers), num_prompts, max(low, bounds[0]), min(high, bounds[1]), method)


def _t_interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """Return Student's interval; if prompts have equally many values, that of the prompts' means."""
    from scipy.stats import t  # noqa: PLC0415 scipy takes half a second to load

    num_prompts, total = len(sums), counts.sum()
    mean = sums.sum() / total
    squares = float(np.square(sums - mean * counts).sum())
    error = math.sqrt(num_prompts / (num_prompts - 1) * squares) / total
    reach = float(t.ppf((1 + LEVEL) / 2, num_prompts - 1)) * error
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
        # How often each unit is drawn, one row a resample: the same as drawing indices, and one matrix product.
        size = min(block, NUM_RESAMPLES - start)
        drawn = generator.multinomial(num_units, np.full(num_units, 1 / num_units), size=size)
        means.append((drawn @ sums) / (drawn @ counts))
    return np.concatenate(means)

"""Bootstrap intervals on numbers that are known."""

from __future__ import annotations

import numpy as np
import pytest

from steerserve.experiments.statistics import estimate


def test_few_values_have_no_interval() -> None:
    assert estimate([], []) is None
    found = estimate([1.0, 2.0], ["a", "b"])
    assert found is not None
    assert (found.mean, found.num_values, found.low, found.high, found.resampled) == (1.5, 2, None, None, None)
    assert not found.excludes_zero


def test_equal_values_have_an_interval_without_width() -> None:
    found = estimate([0.1] * 7, ["a", "b", "c", "a", "b", "c", "a"])
    assert found is not None
    assert found.low == found.high == found.mean
    zero = estimate([0.0] * 4, ["a"] * 4)
    assert zero is not None
    assert zero.is_zero
    assert not zero.excludes_zero


def test_prompts_are_drawn_where_there_are_three_and_samples_otherwise() -> None:
    values = [1.0, 1.0, 2.0, 2.0, 6.0, 6.0]
    clustered = estimate(values, ["a", "a", "b", "b", "c", "c"])
    alone = estimate(values, ["a"] * 6)
    assert clustered is not None
    assert alone is not None
    assert (clustered.resampled, alone.resampled) == ("prompts", "samples")
    assert clustered.mean == alone.mean == 3.0
    # All three draws of prompt a or of c happen often enough to be in the tails; of six samples they do not.
    assert (clustered.low, clustered.high) == (1.0, 6.0)
    assert alone.low is not None
    assert alone.high is not None
    assert 1.0 < alone.low < 3.0 < alone.high < 6.0


def test_the_same_seed_gives_the_same_interval_and_rows_may_come_in_any_order() -> None:
    values, prompts = list(np.random.default_rng(3).normal(size=20)), [str(place % 5) for place in range(20)]
    assert estimate(values, prompts) == estimate(values, prompts)
    assert estimate(values, prompts) != estimate(values, prompts, seed=1)
    turned = estimate(values[::-1], prompts)
    assert turned is not None
    assert turned.mean == pytest.approx(np.mean(values))


def test_it_is_the_interval_that_drawing_one_by_one_gives() -> None:
    generator = np.random.default_rng(8)
    values, prompts = generator.normal(1, 2, size=30), np.repeat(np.arange(10), 3)
    means = []
    for _ in range(4000):
        drawn = generator.integers(0, 10, size=10)
        means.append(np.mean([values[prompts == one] for one in drawn]))
    found = estimate(list(values), list(prompts))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.12)


@pytest.mark.parametrize(("num_prompts", "num_samples"), [(25, 4), (1, 60)])
def test_about_95_of_100_intervals_hold_the_truth(num_prompts: int, num_samples: int) -> None:
    generator = np.random.default_rng(5)
    prompts = [prompt for prompt in range(num_prompts) for _ in range(num_samples)]
    held = 0
    for _ in range(200):
        shared = generator.normal(0, 1 if num_prompts > 1 else 0, size=num_prompts)
        values = [0.7 + shared[prompt] + generator.normal() for prompt in prompts]
        found = estimate(values, prompts)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.7 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_many_values_take_little_memory() -> None:
    found = estimate([float(place % 2) for place in range(30_000)], ["a"] * 30_000)
    assert found is not None
    assert found.low is not None
    assert 0.49 < found.low < 0.5

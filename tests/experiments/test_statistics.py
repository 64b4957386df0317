"""Intervals on numbers that are known."""

from __future__ import annotations

import numpy as np
import pytest

from steerserve.experiments.statistics import estimate


def interval(values: list[float], prompts: list[str], seed: int = 0) -> tuple[float, float]:
    found = estimate(values, prompts, seed=seed)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def test_fewer_than_three_prompts_have_no_interval_however_many_their_samples() -> None:
    assert estimate([], []) is None
    for prompts in (["a", "b"] * 20, ["a"] * 40):
        found = estimate([1.0, 2.0] * 20, prompts)
        assert found is not None
        assert (found.mean, found.num_values, found.num_prompts) == (1.5, 40, len(set(prompts)))
        assert (found.low, found.high, found.method) == (None, None, None)
        assert not found.excludes_zero


def test_equal_values_have_an_interval_without_width() -> None:
    found = estimate([0.1] * 7, ["a", "b", "c", "a", "b", "c", "a"])
    assert found is not None
    assert found.low == found.high == found.mean
    zero = estimate([0.0] * 4, ["a", "b", "c", "c"])
    assert zero is not None
    assert zero.is_zero
    assert not zero.excludes_zero


def test_few_prompts_have_students_interval_of_their_means() -> None:
    # Means 1, 2 and 6: their mean is 3, its standard error the root of 7 / 3, and t with two degrees of freedom 4.3027.
    values, prompts = [0.5, 1.5, 2.0, 2.0, 7.0, 5.0], ["a", "a", "b", "b", "c", "c"]
    found = estimate(values, prompts)
    assert found is not None
    assert (found.mean, found.num_prompts, found.method) == (3.0, 3, "t")
    assert interval(values, prompts) == pytest.approx((3 - 4.302653 * (7 / 3) ** 0.5, 3 + 4.302653 * (7 / 3) ** 0.5))


def test_the_table_of_t_is_the_integral_of_its_density() -> None:
    for num_prompts in range(3, 20):
        degrees = num_prompts - 1
        values = [(-1.0) ** place + place for place in range(num_prompts)]
        low, high = interval(values, [str(place) for place in range(num_prompts)])
        quantile = (high - low) / 2 / (np.std(values, ddof=1) / num_prompts**0.5)
        # With x = sqrt(n) tan(a) the density becomes cos(a) ** (n - 1), which is smooth to both ends.
        angles = np.linspace(0, np.pi / 2, 20_001)
        density = np.cos(angles) ** (degrees - 1)
        reached = angles <= np.arctan(quantile / degrees**0.5)
        assert density[reached].sum() / density.sum() == pytest.approx(0.95, abs=2e-4)


def test_an_interval_ends_where_values_do() -> None:
    found = estimate([0.0, 0.0, 1.0, 0.5], ["a", "b", "c", "d"], bounds=(0, 1))
    assert found is not None
    assert (found.low, found.high) == (0, 1)


def test_the_same_seed_gives_the_same_interval_and_rows_may_come_in_any_order() -> None:
    values, prompts = list(np.random.default_rng(3).normal(size=80)), [str(place % 20) for place in range(80)]
    found = estimate(values, prompts)
    assert found is not None
    assert found.method == "bootstrap"
    assert found == estimate(values, prompts)
    assert found != estimate(values, prompts, seed=1)
    turned = estimate(values[::-1], prompts)
    assert turned is not None
    assert turned.mean == pytest.approx(np.mean(values))


def test_it_is_the_interval_that_drawing_one_by_one_gives() -> None:
    generator = np.random.default_rng(8)
    values, prompts = generator.normal(1, 2, size=60), np.repeat(np.arange(20), 3)
    means = []
    for _ in range(4000):
        drawn = generator.integers(0, 20, size=20)
        means.append(np.mean([values[prompts == one] for one in drawn]))
    found = estimate(list(values), list(prompts))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize(("num_prompts", "runs"), [(3, 2000), (4, 2000), (19, 2000), (25, 500)])
def test_a_difference_that_is_none_is_called_real_in_about_one_of_twenty_runs(num_prompts: int, runs: int) -> None:
    generator = np.random.default_rng(5)
    shared = generator.normal(size=(runs, num_prompts, 1))
    values = (shared + generator.normal(size=(runs, num_prompts, 2))).reshape(runs, -1).tolist()
    prompts = [prompt for prompt in range(num_prompts) for _ in range(2)]
    found = [estimate(one, prompts) for one in values]
    num_wrong = sum(one is not None and one.excludes_zero for one in found)
    assert 0.03 <= num_wrong / runs <= 0.08


@pytest.mark.slow
def test_many_values_take_little_memory() -> None:
    found = estimate([float(place % 2) for place in range(10_000)], [str(place) for place in range(10_000)])
    assert found is not None
    assert found.low is not None
    assert 0.48 < found.low < 0.5

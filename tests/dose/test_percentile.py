"""The percentile against Harrell's and Davis' weights where those can be written down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.dose.percentile import percentile, spread

if TYPE_CHECKING:
    from collections.abc import Callable

# Of the beta distribution, whose parameters are (n + 1) * .95 and (n + 1) * .05.
DISTRIBUTIONS: dict[int, Callable[[float], float]] = {
    19: lambda x: x**19,
    39: lambda x: 39 * x**38 - 38 * x**39,
    59: lambda x: 59 * 58 * 57 / 2 * (x**57 / 57 - 2 * x**58 / 58 + x**59 / 59),
}


@pytest.mark.parametrize("count", DISTRIBUTIONS)
def test_it_is_harrells_and_davis_mean(count: int) -> None:
    below = [DISTRIBUTIONS[count](place / count) for place in range(count + 1)]
    values = torch.randn(4, count, generator=torch.Generator().manual_seed(count)).exp()
    wanted = values.sort(dim=-1).values @ torch.tensor(below).diff()
    torch.testing.assert_close(percentile(values, 0.95), wanted, atol=0, rtol=2e-3)


def test_it_comes_near_the_true_percentile_of_many_numbers() -> None:
    values = torch.rand(1, 4000, generator=torch.Generator().manual_seed(1))
    assert float(percentile(values, 0.95)) == pytest.approx(0.95, abs=0.01)


def test_it_does_not_depend_on_the_order() -> None:
    values = torch.rand(1, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(percentile(values, 0.95), percentile(values.flip(1), 0.95))


def test_equal_values_are_their_own_percentile() -> None:
    torch.testing.assert_close(percentile(torch.full((2, 30), 0.7), 0.95), torch.full((2,), 0.7))


def test_groups_that_are_alike_spread_little() -> None:
    generator = torch.Generator().manual_seed(3)
    groups = torch.arange(14).repeat_interleave(30)
    even = torch.rand(1, 420, generator=generator)
    uneven = even.clone()
    uneven[0, groups == 5] *= 20
    assert float(spread(even, groups, 0.95)) < 0.1
    assert float(spread(uneven, groups, 0.95)) > 0.5

"""Histograms that grow with the maximum count as if that had been known from the beginning."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerserve.interpret.spread import Spread

CPU = torch.device("cpu")
acts_of_feature = st.lists(st.floats(2**-30, 2**30, width=32), min_size=1, max_size=40)


def spread_of(*parts: list[float]) -> Spread:
    """Count parts of one feature's activations, one after the other; two other features are never active."""
    spread = Spread(3, CPU)
    for acts in parts:
        spread.add(len(acts), torch.ones(len(acts), dtype=torch.long), torch.tensor(acts))
    return spread


@settings(deadline=None)
@given(st.lists(acts_of_feature, min_size=1, max_size=5))
def test_the_order_and_the_parts_of_the_text_change_nothing(parts: list[list[float]]) -> None:
    one = spread_of(*parts)
    other = spread_of([act for acts in reversed(parts) for act in reversed(acts)])
    assert torch.equal(one.counts, other.counts)
    assert torch.equal(one.maximum, other.maximum)
    never, found, _ = one.activities()
    assert (never.num_active, never.maximum, never.mean, set(never.quantiles)) == (0, 0.0, 0.0, {0.0})
    assert sum(never.histogram) == 0
    assert sum(found.histogram) == found.num_active == sum(map(len, parts))
    assert found.maximum == max(map(max, parts))


def test_equal_steps_fill_equal_bins() -> None:
    _, found, _ = spread_of([float(step) for step in range(1, 641)]).activities()
    assert all(abs(count - 10) <= 2 for count in found.histogram)
    assert found.quantiles == pytest.approx([320, 480, 576, 608, 633.6], abs=2)
    assert found.mean == 320.5


def test_grown_features_are_told() -> None:
    spread = spread_of([1.0, 2.0])
    grown = spread.add(2, torch.tensor([1, 2]), torch.tensor([1.5, 0.1]))
    assert grown.tolist() == [False, False, True]


@pytest.mark.parametrize("act", [1e-45, 1e-38, 3e38])
def test_the_smallest_and_the_largest_numbers_are_counted(act: float) -> None:
    _, found, _ = spread_of([act, act]).activities()
    assert (found.num_active, sum(found.histogram)) == (2, 2)

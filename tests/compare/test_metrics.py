"""Numbers of a text that can be worked out by hand."""

from __future__ import annotations

import pytest

from steerserve.compare.metrics import distinct_2, first_divergence, repetition


@pytest.mark.parametrize(
    ("token_ids", "repeated", "distinct"),
    [
        ([], 0.0, 1.0),
        ([5], 0.0, 1.0),
        ([1, 2, 3, 4, 5], 0.0, 1.0),
        ([1, 1, 1, 1, 1], 2 / 3, 1 / 4),
        ([1, 2, 1, 2, 1, 2], 2 / 4, 2 / 5),
    ],
)
def test_repetition_counts_n_grams_that_were_there_before(
    token_ids: list[int], repeated: float, distinct: float
) -> None:
    assert repetition(token_ids) == pytest.approx(repeated)
    assert distinct_2(token_ids) == pytest.approx(distinct)


@pytest.mark.parametrize(
    ("token_ids", "first", "expected"),
    [([1, 2], [1, 2], None), ([1, 3], [1, 2], 1), ([2], [1, 2], 0), ([1], [1, 2], 1), ([1, 2], [1], 1), ([], [], None)],
)
def test_texts_diverge_at_the_first_token_that_differs_or_is_missing(
    token_ids: list[int], first: list[int], expected: int | None
) -> None:
    assert first_divergence(token_ids, first) == expected

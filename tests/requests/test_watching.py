"""How many activations one request may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import InvalidRequestError
from steerserve.engine.request import Watch
from steerserve.requests.watching import watched_limits

if TYPE_CHECKING:
    from steerserve.runtime import Runtime


def test_prompts_count_where_they_are_watched_and_reading_counts_where_nothing_is_given(
    llama: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerserve.requests.watching._MAX_ENTRIES", 400)
    dictionaries = (llama.dictionaries()[0],)
    for watch, most in ((Watch(dictionaries, 8, (1, 2), prompt=False), 40), (Watch(dictionaries, 0, (), False), 100)):
        assert watched_limits(watch, 1000, [most - 10, 10], num_samples=1, num_edits=0, can_cut=False) == [
            most - 10,
            10,
        ]
        with pytest.raises(InvalidRequestError):
            watched_limits(watch, 1000, [most - 10, 11], num_samples=1, num_edits=0, can_cut=False)
    with_prompt = Watch(dictionaries, 8, (1, 2), prompt=True)
    assert watched_limits(with_prompt, 30, [10], num_samples=1, num_edits=0, can_cut=False) == [10]
    with pytest.raises(InvalidRequestError):
        watched_limits(with_prompt, 31, [10], num_samples=1, num_edits=0, can_cut=False)
    with pytest.raises(InvalidRequestError):
        watched_limits(with_prompt, 30, [10], num_samples=1, num_edits=1, can_cut=False)
    assert watched_limits(with_prompt, 26, [10], num_samples=1, num_edits=1, can_cut=False) == [10]
    assert watched_limits(None, 10**9, [10**9], num_samples=1, num_edits=0, can_cut=False) == [10**9]

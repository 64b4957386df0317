"""A batch is decided by seed and position, whatever was drawn before it."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch

from steerserve.training.batches import BatchProvider

ROWS = np.arange(70, dtype=np.float16)[:, None].repeat(3, axis=1)


def test_a_provider_goes_on_anywhere_as_if_it_had_never_stopped() -> None:
    whole = list(islice(BatchProvider(ROWS, 16, seed=3), 12))
    for place in (1, 4, 7):
        rest = list(islice(BatchProvider(ROWS, 16, seed=3, position=place), 12 - place))
        assert all(torch.equal(a, b) for a, b in zip(whole[place:], rest, strict=True))


def test_each_pass_sees_a_row_at_most_once_and_in_another_order() -> None:
    provider = BatchProvider(ROWS, 16, seed=3)
    passes = [torch.cat(list(islice(provider, provider.batches_per_epoch)))[:, 0].tolist() for _ in range(2)]
    assert provider.batches_per_epoch == 4
    assert all(len(set(seen)) == 64 for seen in passes)
    assert passes[0] != passes[1]


def test_a_cache_smaller_than_a_batch_is_one_batch() -> None:
    batch = next(BatchProvider(ROWS, 1000, seed=0))
    assert batch.shape == (70, 3)
    assert batch.dtype == torch.float32

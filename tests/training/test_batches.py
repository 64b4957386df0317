"""A batch is decided by seed and step, whatever was drawn before it."""

from __future__ import annotations

import numpy as np
import torch

from steerserve.training.activations import ActivationProfile, CachedActivations
from steerserve.training.batches import CachedBatches

ROWS = np.arange(70, dtype=np.float16)[:, None].repeat(3, axis=1)


def cached(batch_size: int = 16, epochs: int = 3) -> CachedBatches:
    profile = ActivationProfile({"a": 1.0, "b": 1.0}, {"a": 3, "b": 3}, "float16")
    return CachedBatches(CachedActivations({"a": ROWS, "b": -ROWS}, profile, 0), batch_size, epochs, seed=3)


def test_a_batch_can_be_asked_for_at_any_step() -> None:
    whole = cached()
    in_order = [whole.batch(step) for step in range(12)]
    for step in (7, 1, 4):
        assert torch.equal(cached().batch(step)["a"], in_order[step]["a"])


def test_each_pass_sees_a_row_at_most_once_and_in_another_order() -> None:
    batches = cached()
    passes = [torch.cat([batches.batch(4 * epoch + step)["a"] for step in range(4)])[:, 0].tolist() for epoch in (0, 1)]
    assert batches.num_steps == 3 * 4
    assert all(len(set(seen)) == 64 for seen in passes)
    assert passes[0] != passes[1]


def test_every_hook_point_gives_the_same_tokens() -> None:
    batch = cached().batch(5)
    assert torch.equal(batch["a"], -batch["b"])


def test_a_cache_smaller_than_a_batch_is_one_batch() -> None:
    batch = cached(batch_size=1000).batch(0)["a"]
    assert batch.shape == (70, 3)
    assert batch.dtype == torch.float32


def test_samples_are_decided_by_their_seed() -> None:
    one, same, other = (cached().sample("a", 20, seed) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len(cached().sample("a", 1000, 0)) == 70

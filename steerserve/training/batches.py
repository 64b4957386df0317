"""Batches of activations that depend on the seed and the step alone, so that a stopped run resumes exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from steerserve.training.activations import statistics

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import Tensor

    from steerserve.training.activations import ActivationProfile, ActivationStatistics, CachedActivations

    Batch = dict[str, Float[Tensor, "batch d_in"]]

_SAMPLE_STREAM = 1 << 32
"""Part of a sample's seed; that of an epoch's order has the epoch there, which is smaller."""


class Batches(Protocol):
    """The source of a run's batches: the same tokens at every hook point, in float32."""

    batch_size: int
    num_steps: int
    """Number of steps of the whole run."""
    num_tokens: int
    """Number of different tokens so far."""
    num_sinks: int
    """Number of sinks left out so far."""

    @property
    def statistics(self) -> Mapping[str, ActivationStatistics]:
        """Statistics of the activations at each hook point."""

    @property
    def profile(self) -> ActivationProfile:
        """The profile that was measured at the start of the text."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; the first call may be for any step, the next ones must follow in order."""

    def sample(self, hook: str, num_rows: int, seed: int) -> Float[Tensor, "rows d_in"]:
        """Return up to `num_rows` activations, drawn from those in the cache or the buffer."""

    def save(self, folder: Path) -> None:
        """Write to a checkpoint's `folder` what a resumed run cannot compute again."""


class CachedBatches:
    """Batches of rows in the cache: every epoch in a new order, without a partial last batch."""

    def __init__(self, cached: CachedActivations, batch_size: int, epochs: int, seed: int) -> None:
        """Serve all rows `epochs` times."""
        self._rows = cached.rows
        self._num_rows = self.num_tokens = len(next(iter(cached.rows.values())))
        self.num_sinks = cached.num_sinks
        self.profile = cached.profile
        self.statistics = {hook: statistics(rows) for hook, rows in cached.rows.items()}
        self.batch_size = min(batch_size, self._num_rows)
        self._batches_per_epoch = self._num_rows // self.batch_size
        self.num_steps = epochs * self._batches_per_epoch
        self._seed = seed
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; steps may come in any order."""
        epoch, index = divmod(step, self._batches_per_epoch)
        # Sorted, so that the rows are read from disk from front to back.
        chosen = np.sort(self._epoch_order(epoch)[index * self.batch_size : (index + 1) * self.batch_size])
        return {hook: torch.from_numpy(rows[chosen].astype(np.float32)) for hook, rows in self._rows.items()}

    def sample(self, hook: str, num_rows: int, seed: int) -> Float[Tensor, "rows d_in"]:
        """Return up to `num_rows` rows, drawn from all of them."""
        generator = np.random.default_rng([self._seed, _SAMPLE_STREAM, seed])
        chosen = np.sort(generator.choice(self._num_rows, min(num_rows, self._num_rows), replace=False))
        return torch.from_numpy(self._rows[hook][chosen].astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write nothing, since the rows are on disk already."""

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(self._num_rows))
        return self._order[1]

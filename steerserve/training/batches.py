"""Batches of activations that a seed and a step number decide, so that a run can go on anywhere as if never cut."""

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

    from steerserve.training.activations import ActivationStatistics, CachedActivations, Calibration

    Batch = dict[str, Float[Tensor, "batch d_in"]]

_SAMPLING = 1 << 32
"""Keeps the noise of samples apart from that of epochs."""


class Batches(Protocol):
    """Where a run's batches come from: the same tokens at every hook point, in float32."""

    batch_size: int
    num_steps: int
    """Of the whole run."""
    num_tokens: int
    """Different tokens so far."""
    num_sinks: int
    """Sinks left out so far."""

    @property
    def statistics(self) -> Mapping[str, ActivationStatistics]:
        """Of the activations at each hook point."""

    @property
    def calibration(self) -> Calibration:
        """What was settled on the first text."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; after the first call, steps come in their order."""

    def sample(self, hook: str, num_rows: int, seed: int) -> Float[Tensor, "rows d_in"]:
        """Return up to `num_rows` activations drawn from what is at hand."""

    def save(self, folder: Path) -> None:
        """Write what cannot be had again to `folder`, which a checkpoint keeps."""


class CachedBatches:
    """Batches of rows that are all at hand: every epoch in a new order, less a partial last batch."""

    def __init__(self, cached: CachedActivations, batch_size: int, epochs: int, seed: int) -> None:
        """Serve all rows `epochs` times."""
        self._rows = cached.rows
        self._num_rows = self.num_tokens = len(next(iter(cached.rows.values())))
        self.num_sinks = cached.num_sinks
        self.calibration = cached.calibration
        self.statistics = {hook: statistics(rows) for hook, rows in cached.rows.items()}
        self.batch_size = min(batch_size, self._num_rows)
        self._batches_per_epoch = self._num_rows // self.batch_size
        self.num_steps = epochs * self._batches_per_epoch
        self._seed = seed
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, asked for in any order."""
        epoch, place = divmod(step, self._batches_per_epoch)
        # Sorted, so that the rows are read from disk from front to back.
        chosen = np.sort(self._epoch_order(epoch)[place * self.batch_size : (place + 1) * self.batch_size])
        return {hook: torch.from_numpy(rows[chosen].astype(np.float32)) for hook, rows in self._rows.items()}

    def sample(self, hook: str, num_rows: int, seed: int) -> Float[Tensor, "rows d_in"]:
        """Return rows drawn from all of them."""
        generator = np.random.default_rng([self._seed, _SAMPLING, seed])
        chosen = np.sort(generator.choice(self._num_rows, min(num_rows, self._num_rows), replace=False))
        return torch.from_numpy(self._rows[hook][chosen].astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write nothing: the rows are on disk."""

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(self._num_rows))
        return self._order[1]

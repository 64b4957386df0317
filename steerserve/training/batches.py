"""Batches of cached activations in an order that a seed and a step number decide, so that a run can go on anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import Tensor


class BatchProvider:
    """Yields `[batch_size, d_in]` without end: every pass over the rows in a new order, less a partial last batch."""

    def __init__(self, rows: NDArray[np.generic], batch_size: int, seed: int, position: int = 0) -> None:
        """Serve `rows [num_rows, d_in]`, starting with the batch of number `position`."""
        self._rows = rows
        self.batch_size = min(batch_size, len(rows))
        self._seed = seed
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self.position = position
        """The number of the next batch; set it to go on from there."""
        self.batches_per_epoch = len(rows) // self.batch_size

    def __iter__(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Return itself: there is one position."""
        return self

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        """Return the next batch, in float32."""
        epoch, place = divmod(self.position, self.batches_per_epoch)
        chosen = self._epoch_order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        self.position += 1
        # Sorted, so that the rows are read from disk from front to back.
        return torch.from_numpy(self._rows[np.sort(chosen)].astype(np.float32))

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._rows)))
        return self._order[1]

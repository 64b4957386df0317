"""Activations of a text at hook points, special tokens and sinks left out, and what is known of them as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from steerserve.core.errors import CorpusError
from steerserve.model.norms import SINK_RATIO, counted_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import Tensor

    from steerserve.model.lens import LensModel
    from steerserve.text.windows import WindowBatch

CALIBRATION_BATCHES = 4
_FLOAT16_LIMIT = 60_000.0
_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """What the server and the trainer need to know about the activations at a hook point, sinks left out."""

    median_norm: float
    mean_norm: float
    mean: Float[Tensor, " d_in"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which tokens are sinks, and what activations are kept in: settled on the first text, for the whole run."""

    sink_norms: Mapping[str, float]
    """At each hook point, tokens of a larger norm are left out."""
    widths: Mapping[str, int]
    """Components of an activation at each hook point."""
    dtype: str
    """float16, or float32 where float16 could overflow."""


@dataclass(frozen=True, slots=True)
class CachedActivations:
    """The activations of a whole text."""

    rows: Mapping[str, NDArray[np.generic]]
    """At each hook point `[num_rows, d_in]`, of the same tokens."""
    calibration: Calibration
    num_sinks: int


def calibrate(lens: LensModel, hooks: Sequence[str], batches: Sequence[WindowBatch]) -> Calibration:
    """Set the sinks' norms from the medians over the first few batches.

    Raises:
        CorpusError: they have no token to train on.
    """
    norms: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    widths: dict[str, int] = {}
    for batch in batches:
        for hook, acts in lens.read(batch.ids, hooks).items():
            norms[hook].append(acts.float().norm(dim=-1).cpu()[batch.wanted])
            widths[hook] = acts.shape[-1]
    if not any(len(some) for some in norms[hooks[0]]):
        message = "The corpus has no token to train on: it is empty or made of special tokens."
        raise CorpusError(message, param="corpus")
    sink_norms = {hook: SINK_RATIO * float(torch.cat(some).median()) for hook, some in norms.items()}
    dtype = "float16" if max(sink_norms.values()) < _FLOAT16_LIMIT else "float32"
    return Calibration(sink_norms, widths, dtype)


class ActivationReader:
    """Reads batches of text into rows, from any batch on; a sink at one hook point is left out at all of them."""

    def __init__(self, lens: LensModel, hooks: Sequence[str], batches: Iterator[WindowBatch]) -> None:
        """Read `batches`, of which none has been taken yet."""
        self._lens = lens
        self._hooks = tuple(hooks)
        self._batches = batches
        self._first: list[WindowBatch] = []
        self.calibration: Calibration | None = None
        self.num_batches = 0
        """Batches read so far."""
        self.num_sinks = 0

    def start(self) -> Calibration:
        """Calibrate on the first batches, which are read again afterwards.

        Raises:
            CorpusError: the text has no token to train on.
        """
        self._first = list(islice(self._batches, CALIBRATION_BATCHES))
        self.calibration = calibrate(self._lens, self._hooks, self._first)
        return self.calibration

    def go_on(self, calibration: Calibration, num_batches: int) -> None:
        """Go on behind the first `num_batches` batches, which an earlier run has read."""
        self.calibration, self.num_batches = calibration, num_batches
        next(islice(self._batches, num_batches, num_batches), None)

    def read(self) -> dict[str, NDArray[np.generic]] | None:
        """Return the next batch's rows `[kept, d_in]` at each hook point, None at the end of the text."""
        batch = self._first.pop(0) if self._first else next(self._batches, None)
        if batch is None or self.calibration is None:
            return None
        found = self._lens.read(batch.ids, self._hooks)
        keep = batch.wanted.to(self._lens.device)
        for hook, acts in found.items():
            keep = counted_tokens(acts, keep, self.calibration.sink_norms[hook])
        self.num_batches += 1
        self.num_sinks += int(batch.wanted.sum()) - int(keep.sum())
        dtype = self.calibration.dtype
        return {hook: acts[keep].float().cpu().numpy().astype(dtype) for hook, acts in found.items()}


def statistics(rows: NDArray[np.generic]) -> ActivationStatistics:
    """Return median norm, mean norm and mean of `rows [num_rows, d_in]`."""
    norms, total = [], np.zeros(rows.shape[1], dtype=np.float64)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK].astype(np.float32)
        norms.append(np.linalg.norm(chunk, axis=1))
        total += chunk.sum(axis=0, dtype=np.float64)
    every = np.concatenate(norms)
    mean = torch.from_numpy((total / len(rows)).astype(np.float32))
    return ActivationStatistics(float(np.median(every)), float(every.mean()), mean)

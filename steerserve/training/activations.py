"""Activations of a text at hook points, special tokens and sinks left out, and their statistics."""

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

PROFILE_BATCHES = 4
"""Batches at the start of the text that the profile is measured on."""
_FLOAT16_LIMIT = 60_000.0
"""Largest norm that is kept in float16, whose largest number is 65,504."""
_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """Norms and mean of the activations at a hook point, sinks left out, for the trainer and the server."""

    median_norm: float
    mean_norm: float
    mean: Float[Tensor, " d_in"]


@dataclass(frozen=True, slots=True)
class ActivationProfile:
    """Norms above which tokens are sinks, and how activations are stored: measured once, for the whole run."""

    sink_norms: Mapping[str, float]
    """Norm at each hook point above which a token is left out as a sink."""
    widths: Mapping[str, int]
    """Number of components of an activation at each hook point."""
    dtype: str
    """Number format that activations are stored in: float16, or float32 if float16 could overflow."""


@dataclass(frozen=True, slots=True)
class CachedActivations:
    """The activations of a whole text."""

    rows: Mapping[str, NDArray[np.generic]]
    """Activations `[num_rows, d_in]` at each hook point, of the same tokens at all of them."""
    profile: ActivationProfile
    num_sinks: int


def measure_profile(lens: LensModel, hooks: Sequence[str], batches: Sequence[WindowBatch]) -> ActivationProfile:
    """Measure the profile on the first batches of a text: a sink's norm is a multiple of their median norm.

    Raises:
        CorpusError: the batches have no token to train on.
    """
    norms: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    widths: dict[str, int] = {}
    for batch in batches:
        for hook, acts in lens.read(batch.ids, hooks).items():
            norms[hook].append(acts.float().norm(dim=-1).cpu()[batch.is_plain])
            widths[hook] = acts.shape[-1]
    if not any(len(values) for values in norms[hooks[0]]):
        message = "The corpus has no token to train on: it is empty or has special tokens alone. Give one with text."
        raise CorpusError(message, param="corpus")
    sink_norms = {hook: SINK_RATIO * float(torch.cat(values).median()) for hook, values in norms.items()}
    dtype = "float16" if max(sink_norms.values()) < _FLOAT16_LIMIT else "float32"
    return ActivationProfile(sink_norms, widths, dtype)


class ActivationReader:
    """Turns batches of text into rows of activations; a sink at one hook point is left out at all of them."""

    def __init__(self, lens: LensModel, hooks: Sequence[str], batches: Iterator[WindowBatch]) -> None:
        """Read `batches`, an iterator at the start of the text."""
        self._lens = lens
        self._hooks = tuple(hooks)
        self._batches = batches
        self._first: list[WindowBatch] = []
        self.profile: ActivationProfile | None = None
        self.num_batches = 0
        """Number of batches read so far."""
        self.num_sinks = 0

    def start(self) -> ActivationProfile:
        """Measure the profile on the first batches, which `read` then returns as well.

        Raises:
            CorpusError: the text has no token to train on.
        """
        self._first = list(islice(self._batches, PROFILE_BATCHES))
        self.profile = measure_profile(self._lens, self._hooks, self._first)
        return self.profile

    def resume(self, profile: ActivationProfile, num_batches: int) -> None:
        """Skip the first `num_batches` batches, which an earlier run has read with `profile`."""
        self.profile, self.num_batches = profile, num_batches
        next(islice(self._batches, num_batches, num_batches), None)

    def read(self) -> dict[str, NDArray[np.generic]] | None:
        """Return the next batch's rows `[kept, d_in]` at each hook point; None at the end of the text."""
        batch = self._first.pop(0) if self._first else next(self._batches, None)
        if batch is None or self.profile is None:
            return None
        batch_acts = self._lens.read(batch.ids, self._hooks)
        keep = batch.is_plain.to(self._lens.device)
        for hook, acts in batch_acts.items():
            keep = counted_tokens(acts, keep, self.profile.sink_norms[hook])
        self.num_batches += 1
        self.num_sinks += int(batch.is_plain.sum()) - int(keep.sum())
        dtype = self.profile.dtype
        return {hook: acts[keep].float().cpu().numpy().astype(dtype) for hook, acts in batch_acts.items()}


def statistics(rows: NDArray[np.generic]) -> ActivationStatistics:
    """Return median norm, mean norm and mean of `rows [num_rows, d_in]`."""
    chunk_norms, total = [], np.zeros(rows.shape[1], dtype=np.float64)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK].astype(np.float32)
        chunk_norms.append(np.linalg.norm(chunk, axis=1))
        total += chunk.sum(axis=0, dtype=np.float64)
    norms = np.concatenate(chunk_norms)
    mean = torch.from_numpy((total / len(rows)).astype(np.float32))
    return ActivationStatistics(float(np.median(norms)), float(norms.mean()), mean)

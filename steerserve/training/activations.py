"""Residual activations of a corpus at one hook point, kept on disk: special tokens and sinks never get in.

A cache can be filled in several goes: what is on disk is always a prefix of what an undisturbed run would write.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from steerserve.core.errors import CorpusError
from steerserve.model.norms import SINK_RATIO
from steerserve.training.files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jaxtyping import Bool, Float
    from numpy.typing import NDArray
    from torch import Tensor

    from steerserve.model.lens import LensModel
    from steerserve.training.progress import Progress
    from steerserve.training.windows import WindowBatch

_CALIBRATION_BATCHES = 4
_SAVE_EVERY = 25
_FLOAT16_LIMIT = 60_000.0
_CHUNK = 65_536
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheState:
    """How far a cache is filled, and the numbers that must stay the same until it is full."""

    num_rows: int
    num_batches: int
    sink_norm: float
    """Tokens of a larger norm are left out."""
    num_sinks: int
    dtype: str
    d_in: int
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """What the server and the trainer need to know about the activations at a hook point, sinks left out."""

    median_norm: float
    mean_norm: float
    mean: Float[Tensor, " d_in"]


def harvest(
    lens: LensModel, hook: str, batches: Iterator[WindowBatch], folder: Path, tokens: int, progress: Progress
) -> NDArray[np.generic]:
    """Fill the cache in `folder` up to `tokens` rows (fewer if the text ends) and return it, `[num_rows, d_in]`.

    Raises:
        CorpusError: the text has no token to train on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file, data_file = folder / "state.json", folder / "activations.bin"
    if state_file.is_file():
        state = CacheState(**json.loads(state_file.read_text()))
        first: list[WindowBatch] = []
        next(islice(batches, state.num_batches, state.num_batches), None)
    else:
        first = list(islice(batches, _CALIBRATION_BATCHES))
        state = _calibrate(lens, hook, first)
    if not state.is_full:
        rows: np.memmap[tuple[int, int], np.dtype[np.generic]] = np.memmap(
            data_file, state.dtype, "r+" if data_file.is_file() else "w+", shape=(tokens, state.d_in)
        )
        for batch in (*first, *batches):
            state = _append(rows, state, lens.run_to(batch.ids, hook), batch.wanted)
            progress.update(state.num_rows, sinks=state.num_sinks)
            if state.num_batches % _SAVE_EVERY == 0:
                rows.flush()
                write_json(state_file, asdict(state))
            if state.num_rows == tokens:
                break
        rows.flush()
        state = replace(state, is_full=True)
        write_json(state_file, asdict(state))
    if state.num_rows == 0:
        message = "The corpus has no token to train on: all are special tokens or attention sinks."
        raise CorpusError(message, param="corpus")
    if state.num_rows < tokens:
        log.warning("the corpus gives %d tokens, fewer than the %d asked for", state.num_rows, tokens)
    return np.memmap(data_file, state.dtype, "r", shape=(tokens, state.d_in))[: state.num_rows]


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


def keep_mask(
    resid: Float[Tensor, "rows pos d_model"], wanted: Bool[Tensor, "rows pos"], sink_norm: float
) -> Bool[Tensor, "rows pos"]:
    """Return which tokens a dictionary is trained and judged on: the wanted ones that are no sinks."""
    keep: Tensor = wanted.to(resid.device) & (resid.float().norm(dim=-1) <= sink_norm)
    return keep


def _calibrate(lens: LensModel, hook: str, batches: list[WindowBatch]) -> CacheState:
    """Set the sink's norm from the median over a few batches; it then holds for the whole cache."""
    norms = [lens.run_to(batch.ids, hook).float().norm(dim=-1).cpu()[batch.wanted] for batch in batches]
    every = torch.cat(norms) if norms else torch.empty(0)
    if len(every) == 0:
        message = "The corpus has no token to train on: it is empty or made of special tokens."
        raise CorpusError(message, param="corpus")
    sink_norm = SINK_RATIO * float(every.median())
    dtype = "float16" if sink_norm < _FLOAT16_LIMIT else "float32"
    return CacheState(num_rows=0, num_batches=0, sink_norm=sink_norm, num_sinks=0, dtype=dtype, d_in=lens.d_model)


def _append(
    rows: NDArray[np.generic],
    state: CacheState,
    resid: Float[Tensor, "rows pos d_model"],
    wanted: Bool[Tensor, "rows pos"],
) -> CacheState:
    keep = keep_mask(resid, wanted, state.sink_norm)
    kept = resid[keep][: len(rows) - state.num_rows].float().cpu().numpy()
    rows[state.num_rows : state.num_rows + len(kept)] = kept
    return replace(
        state,
        num_rows=state.num_rows + len(kept),
        num_batches=state.num_batches + 1,
        num_sinks=state.num_sinks + int(wanted.sum()) - int(keep.sum()),
    )

"""Compares two sets of texts: the features that tell them apart, and edits that lead towards the first set."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from typing import TYPE_CHECKING, Any

import torch

from steerserve.contrast.separation import rank_features
from steerserve.core.errors import QueueFullError
from steerserve.engine.background import drive_async
from steerserve.engine.readings import encode_counted, read_texts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    import numpy as np
    from jaxtyping import Float
    from numpy.typing import NDArray

    from steerserve.contrast.separation import Candidate
    from steerserve.contrast.text_sets import TextSets
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.protocols import Probe
    from steerserve.engine.readings import Span
    from steerserve.store.records import Calibration

SIGNIFICANT = 0.05
"""Largest p-value of a feature that is proposed for steering."""
MAX_WAITING = 8
"""Contrasts that may wait while another one runs."""
_RETRY_AFTER_S = 5
_CHANCE = 0.5
_NORM_OF_A_DOSE = 0.27
"""Part of the mean norm that is about one dose of most directions. Source: docs/features.md, contrast."""
_DIGITS = 2
"""Decimals of a scale; it is rounded down, so that all edits together never exceed one dose."""
_ROUNDING = 1e-9
"""Largest rounding error of a product of two decimals."""


async def contrast(
    engine: Probe, dictionary: Dictionary, sets: TextSets, limit: int, queue: ContrastQueue
) -> list[Candidate]:
    """Return the features that tell the sets apart, the best first.

    It waits in `queue` for its turn. Cancelling this ends it within about a second.

    Raises:
        InvalidRequestError: a text has no token that the dictionary reads.
        QueueFullError: too many others wait in the queue, or read activations.
    """
    async with queue.turn():
        acts = await pooled_activations(engine, dictionary, sets)
        is_cancelled = threading.Event()
        work = asyncio.ensure_future(
            asyncio.to_thread(rank_features, acts, sets.num_positive, limit, should_stop=is_cancelled.is_set)
        )
        try:
            return await asyncio.shield(work)
        finally:
            is_cancelled.set()
            await asyncio.gather(work, return_exceptions=True)


class ContrastQueue:
    """Lets one contrast run at a time: with a wide dictionary it takes hundreds of megabytes and all cores.

    One event loop at a time uses it.
    """

    def __init__(self) -> None:
        """Begin without contrasts."""
        self._num_contrasts = 0
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until no other contrast runs, and exclude others during the block.

        Raises:
            QueueFullError: too many contrasts wait already.
        """
        if self._num_contrasts > MAX_WAITING:
            message = f"{MAX_WAITING} contrasts wait already, and one runs at a time. Try again in a few seconds."
            raise QueueFullError(message, retry_after_s=_RETRY_AFTER_S)
        if not self._num_contrasts:
            self._lock = asyncio.Lock()  # a lock belongs to the event loop that waited for it
        self._num_contrasts += 1
        try:
            async with self._lock:
                yield
        finally:
            self._num_contrasts -= 1


async def pooled_activations(
    engine: Probe, dictionary: Dictionary, sets: TextSets
) -> Float[NDArray[np.float32], "texts features"]:
    """Return each feature's largest activation on each text, special tokens and sinks left out.

    Raises:
        InvalidRequestError: a text has no token that the dictionary reads.
        QueueFullError: too many others read activations.
    """
    lens = engine.lens
    special_ids = lens.tokenizer.special_ids
    pooled = torch.full((len(sets.rows), dictionary.d_sae), -torch.inf)

    def take(span: Span) -> None:
        _, parts = encode_counted(dictionary, span, special_ids)
        for acts in parts:
            pooled[span.row] = torch.maximum(pooled[span.row], acts.amax(0).cpu())

    await drive_async(engine.run_exclusive, read_texts(lens, sets.rows, dictionary.hook_names, take))
    unread = torch.isinf(pooled[:, 0]).nonzero().flatten().tolist()
    if unread:
        raise sets.unreadable(unread[0])
    values: NDArray[np.float32] = pooled.numpy()
    return values


def ready_steering(
    candidates: Sequence[Candidate],
    dictionary: Dictionary,
    calibrations: Mapping[int, Calibration],
    max_edits: int,
) -> list[dict[str, Any]]:
    """Return edits that lead towards the first set, with features whose separation is significant, writers first.

    Together they are at most one dose, also if their directions are similar, as those of one meaning are. A feature
    without a calibration is edited in the unit `norm`, by the size that one dose has for most directions.
    """
    significant = [
        candidate
        for candidate in candidates
        if candidate.p_value <= SIGNIFICANT
        and candidate.auc > _CHANCE
        and candidate.feature not in dictionary.zero_directions
    ]
    chosen = sorted(significant, key=lambda candidate: _rank(calibrations.get(candidate.feature)))[:max_edits]
    share = 1 / max(len(chosen), 1)
    return [_edit(candidate.feature, dictionary, share, calibrations.get(candidate.feature)) for candidate in chosen]


def _rank(calibration: Calibration | None) -> int:
    if calibration is None:
        return 1
    return 0 if calibration.writes else 2


def _edit(feature: int, dictionary: Dictionary, share: float, calibration: Calibration | None) -> dict[str, Any]:
    unit, one_dose = ("norm", _NORM_OF_A_DOSE) if calibration is None else ("dose", 1.0)
    return {
        "dictionary": dictionary.id,
        "feature": feature,
        "mode": "add",
        "scale": math.floor(one_dose * share * 10**_DIGITS + _ROUNDING) / 10**_DIGITS,
        "unit": unit,
    }

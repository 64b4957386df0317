"""Two sets of texts against each other: the features that tell them apart, and edits that lead to the first."""

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
"""Contrasts that may wait for the one that is made."""
_RETRY_AFTER_S = 5
_CHANCE = 0.5
_NORM_OF_A_DOSE = 0.27
"""Of the mean norm: where a change of any direction comes to about one dose. Source: training.md."""
_DIGITS = 2
"""Of a scale; rounded down, so that edits never come to more together."""
_ROUNDING = 1e-9
"""What a product of two decimals may lack of the next one."""


async def contrast(
    engine: Probe, dictionary: Dictionary, sets: TextSets, limit: int, line: ContrastLine
) -> list[Candidate]:
    """Return the features that tell the sets apart, the best first.

    It waits in `line`. Cancelling this ends it within about a second.

    Raises:
        InvalidRequestError: a text has no token that the dictionary reads.
        QueueFullError: too many others wait for that, or read activations.
    """
    async with line.turn():
        acts = await pooled_activations(engine, dictionary, sets)
        is_left = threading.Event()
        work = asyncio.ensure_future(
            asyncio.to_thread(rank_features, acts, sets.num_positive, limit, should_stop=is_left.is_set)
        )
        try:
            return await asyncio.shield(work)
        finally:
            is_left.set()
            await asyncio.gather(work, return_exceptions=True)


class ContrastLine:
    """Lets one contrast in at a time, a few wait: with a wide dictionary each takes hundreds of megabytes, all cores.

    One event loop at a time uses it.
    """

    def __init__(self) -> None:
        """Begin with nobody inside."""
        self._num_inside = 0
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for one's turn.

        Raises:
            QueueFullError: too many wait already.
        """
        if self._num_inside > MAX_WAITING:
            message = f"{MAX_WAITING} contrasts wait already, and one is made at a time. Try again in a while."
            raise QueueFullError(message, retry_after_s=_RETRY_AFTER_S)
        if not self._num_inside:
            self._lock = asyncio.Lock()  # one that was waited for belongs to its event loop
        self._num_inside += 1
        try:
            async with self._lock:
                yield
        finally:
            self._num_inside -= 1


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
    """Return edits that lead towards the first set: of features that chance does not explain, what writes first.

    Together they come to one dose at most, also where their directions are alike, as those of one meaning are. Where a
    feature has no calibration, `norm` gives its change the size that a dose has for most directions.
    """
    proven = [
        candidate
        for candidate in candidates
        if candidate.p_value <= SIGNIFICANT
        and candidate.auc > _CHANCE
        and candidate.feature not in dictionary.zero_directions
    ]
    chosen = sorted(proven, key=lambda candidate: _reluctance(calibrations.get(candidate.feature)))[:max_edits]
    share = 1 / max(len(chosen), 1)
    return [_edit(candidate.feature, dictionary, share, calibrations.get(candidate.feature)) for candidate in chosen]


def _reluctance(calibration: Calibration | None) -> int:
    if calibration is None:
        return 1
    return 0 if calibration.writes else 2


def _edit(feature: int, dictionary: Dictionary, share: float, calibration: Calibration | None) -> dict[str, Any]:
    unit, whole = ("norm", _NORM_OF_A_DOSE) if calibration is None else ("dose", 1.0)
    return {
        "dictionary": dictionary.id,
        "feature": feature,
        "mode": "add",
        "scale": math.floor(whole * share * 10**_DIGITS + _ROUNDING) / 10**_DIGITS,
        "unit": unit,
    }

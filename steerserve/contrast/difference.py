"""A steering vector from two sets of texts: the difference between the means of their residual streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from steerserve.contrast.separation import held_out_projection
from steerserve.core.errors import InvalidRequestError
from steerserve.engine.background import drive_async
from steerserve.engine.readings import counted_of, read_texts

if TYPE_CHECKING:
    from steerserve.contrast.text_sets import TextSets
    from steerserve.core.literals import Pooling
    from steerserve.engine.protocols import Probe
    from steerserve.engine.readings import Span

_LEAST_SHARE = 1e-4
"""Part of the median norm below which a difference is rounding, also in bfloat16 if some tokens are averaged."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A vector from the mean of the negative texts to that of the positive ones."""

    hook_name: str
    """Hook point at which the texts were read."""
    values: tuple[float, ...]
    """The vector."""
    held_out_auc: float
    """How well the projection on such a vector separates texts that it was not made from; .5 is chance."""


async def difference_of_means(
    engine: Probe, hook_name: str, median_norm: float, sets: TextSets, pooling: Pooling
) -> Difference:
    """Return the vector at a hook point, each text weighing the same.

    Source: ActAdd (Turner et al. 2023) and CAA (Rimsky et al. 2024), over whole texts or their last tokens.

    Raises:
        InvalidRequestError: a text has no token that counts, or the sets do not differ there.
        QueueFullError: too many others read activations.
    """
    lens = engine.lens
    special_ids = lens.tokenizer.special_ids
    sums = torch.zeros(len(sets.rows), lens.width(hook_name), dtype=torch.float64)
    counts = torch.zeros(len(sets.rows), 1, dtype=torch.float64)

    def take(span: Span) -> None:
        keep = counted_of(span, hook_name, median_norm, special_ids)
        x = span.values[hook_name][keep].double().cpu()
        if pooling == "mean":
            sums[span.row] += x.sum(0)
            counts[span.row] += len(x)
        elif len(x):
            sums[span.row] = x[-1]
            counts[span.row] = 1

    await drive_async(engine.run_exclusive, read_texts(lens, sets.rows, [hook_name], take))
    unread = (counts[:, 0] == 0).nonzero().flatten().tolist()
    if unread:
        raise sets.unreadable(unread[0])
    x = (sums / counts).numpy()
    direction = x[: sets.num_positive].mean(0) - x[sets.num_positive :].mean(0)
    length = float(np.linalg.norm(direction))
    if not length >= _LEAST_SHARE * median_norm:
        message = (
            f"The two sets of texts do not differ at {hook_name}: the difference of their means has a length of "
            f"{length:.2g}, and values there have a norm of about {median_norm:.2g}."
        )
        raise InvalidRequestError(message, param="negative")
    return Difference(hook_name, tuple(direction.tolist()), held_out_projection(x, sets.num_positive))

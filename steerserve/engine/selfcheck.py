"""A check at start-up: whether a model computes the same logits with the slot cache as without a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from steerserve.core.errors import ModelSourceError
from steerserve.model.packed import MIN_ROWS

if TYPE_CHECKING:
    from steerserve.engine.runner import Runner

_NUM_TOKENS = 12
_TOLERANCE = 0.1
"""Largest difference as a share of the logits' spread. bfloat16 rounding is far below, a wrong mask far above."""


@torch.inference_mode()
def check_cache(runner: Runner) -> None:
    """Compare the logits of a few tokens computed at once with those computed in chunks and steps through the cache.

    Raises:
        ModelSourceError: the logits differ, so the cache does not work for this model.
    """
    lens = runner.lens
    try:
        worst = _worst_difference(runner)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"The model {lens.id} cannot compute with this server's cache: {reason}"
        raise ModelSourceError(message) from error
    if not worst <= _TOLERANCE:
        message = (
            f"The model {lens.id} computes other logits with this server's cache than without a cache (they differ by "
            f"{worst:.2g} of their spread, and {_TOLERANCE:g} is allowed). This server does not support its attention."
        )
        raise ModelSourceError(message)


def _worst_difference(runner: Runner) -> float:
    lens, cache = runner.lens, runner.cache
    ids = torch.arange(_NUM_TOKENS, device=lens.device) % lens.vocab_size
    whole = lens.forward(ids[None], use_cache=False)[0].float()
    half = _NUM_TOKENS // 2
    parts = [
        lens.forward(ids[None, start:stop], **cache.view_prefill(0, start, stop))[0].float()
        for start, stop in ((0, half), (half, _NUM_TOKENS - 1))
    ]
    columns = torch.full((MIN_ROWS,), cache.context, device=lens.device)
    columns[0] = _NUM_TOKENS - 1
    newest = ids[-1].expand(MIN_ROWS, 1)
    parts.append(lens.forward(newest, **cache.view_decode(columns, _NUM_TOKENS - 1))[:1, -1].float())
    return float((torch.cat(parts) - whole).abs().max() / whole.std())

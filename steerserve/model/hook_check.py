"""One look, when a model is loaded, whether its hook points can be listened to and edited.

Where a value is inside a block is TransformerLens' word for a whole family of models. That the value passes there, and
that an edit of the stream between attention and MLP reaches the block's sum and not the MLP alone, is tried here.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import torch

from steerserve.model.names import MLP_OUT, READ_KINDS, RESID_MID, RESID_POST, RESID_PRE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from steerserve.model.hook_points import HookFn, Point

_NUM_TOKENS = 4
_PART = 0.1
"""Length of an edit, as a part of the stream's: large against rounding in bfloat16."""
_TOLERANCE = 0.25
"""Of the edit's length."""

_log = logging.getLogger(__name__)


@torch.inference_mode()
def working_points(points: Mapping[str, Point], forward: Callable[[Tensor], object]) -> dict[str, Point]:
    """Return the hook points that do what their names say, in their order.

    Args:
        points: All that may be offered.
        forward: Runs the model over `ids [rows, pos]`.
    """
    seen: dict[str, Tensor] = {}
    try:
        with contextlib.ExitStack() as stack:
            for hook_name, point in points.items():
                stack.callback(point.attach(_probe(hook_name, point.width, seen)))
            forward(torch.arange(_NUM_TOKENS)[None])
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        _log.warning("no hook points inside blocks, as the model cannot run with them: %s", error)
        return {name: point for name, point in points.items() if name.endswith((RESID_PRE, RESID_POST))}
    return {name: point for name, point in points.items() if name in seen and _is_kept(name, seen)}


def _probe(hook_name: str, width: int, seen: dict[str, Tensor]) -> HookFn:
    """Note the value, after an edit of it where that shows whether edits reach the block's sum."""

    def fn(value: Tensor) -> Tensor | None:
        if value.shape[-1] != width:
            return None
        if hook_name.endswith(READ_KINDS):
            seen[hook_name] = value
            return None
        edited = value
        if hook_name.endswith(RESID_MID):
            edited = value + _PART * value.roll(1, dims=-1)
        elif hook_name.endswith(MLP_OUT) and (mid := seen.get(_beside(hook_name, RESID_MID))) is not None:
            edited = _PART * mid.roll(2, dims=-1)
        seen[hook_name] = edited.clone()
        return edited

    return fn


def _is_kept(hook_name: str, seen: Mapping[str, Tensor]) -> bool:
    """Whether what was put at a `hook_resid_mid` is what the MLP's output was added to; true for all others."""
    if not hook_name.endswith(RESID_MID):
        return True
    added, post = seen.get(_beside(hook_name, MLP_OUT)), seen.get(_beside(hook_name, RESID_POST))
    if added is None or post is None:
        return False
    error = (post.float() - seen[hook_name].float() - added.float()).norm(dim=-1)
    return bool((error <= _TOLERANCE * added.float().norm(dim=-1)).all())


def _beside(hook_name: str, kind: str) -> str:
    """Return the name of another hook point of the same block."""
    _, block, _ = hook_name.split(".", 2)
    return f"blocks.{block}.{kind}"

"""A check when a model is loaded: which of its hook points can be read and edited.

TransformerLens' adapter says for a whole family of models where a value is inside a block. This module tests on the
model itself that the value passes there, and that an edit of the stream between attention and MLP reaches the block's
output, and not only the MLP.
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

    from steerserve.model.hook_points import HookFn, HookPoint

_NUM_TOKENS = 4
_PART = 0.1
"""Length of an edit as a share of the stream's; much larger than rounding in bfloat16."""
_TOLERANCE = 0.25
"""Largest error as a share of the edit's length."""

_log = logging.getLogger(__name__)


@torch.inference_mode()
def working_points(points: Mapping[str, HookPoint], forward: Callable[[Tensor], object]) -> dict[str, HookPoint]:
    """Return the hook points that work, in their order.

    Args:
        points: The hook points to test.
        forward: Runs the model over `ids [rows, pos]`.
    """
    seen: dict[str, Tensor] = {}
    try:
        with contextlib.ExitStack() as stack:
            for hook_name, point in points.items():
                stack.callback(point.attach(_probe(hook_name, point.width, seen)))
            forward(torch.arange(_NUM_TOKENS)[None])
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        _log.warning("hook points inside blocks are not offered, as the model fails with them: %s", error)
        return {name: point for name, point in points.items() if name.endswith((RESID_PRE, RESID_POST))}
    return {name: point for name, point in points.items() if name in seen and _reaches_output(name, seen)}


def _probe(hook_name: str, width: int, seen: dict[str, Tensor]) -> HookFn:
    """Return a function that notes the value, and edits it if that shows whether edits reach the block's output."""

    def fn(value: Tensor) -> Tensor | None:
        if value.shape[-1] != width:
            return None
        if hook_name.endswith(READ_KINDS):
            seen[hook_name] = value
            return None
        edited = value
        if hook_name.endswith(RESID_MID):
            edited = value + _PART * value.roll(1, dims=-1)
        elif hook_name.endswith(MLP_OUT) and (mid := seen.get(_sibling(hook_name, RESID_MID))) is not None:
            edited = _PART * mid.roll(2, dims=-1)
        seen[hook_name] = edited.clone()
        return edited

    return fn


def _reaches_output(hook_name: str, seen: Mapping[str, Tensor]) -> bool:
    """Tell whether the MLP's output was added to the edited `hook_resid_mid`; true for all other hook points."""
    if not hook_name.endswith(RESID_MID):
        return True
    added, post = seen.get(_sibling(hook_name, MLP_OUT)), seen.get(_sibling(hook_name, RESID_POST))
    if added is None or post is None:
        return False
    error = (post.float() - seen[hook_name].float() - added.float()).norm(dim=-1)
    return bool((error <= _TOLERANCE * added.float().norm(dim=-1)).all())


def _sibling(hook_name: str, kind: str) -> str:
    """Return the name of another hook point of the same block."""
    _, block, _ = hook_name.split(".", 2)
    return f"blocks.{block}.{kind}"

"""What a push does, straight from its definition: the whole model with torch's own softmax, tokens taken one by one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from steerserve.dose.prompts import calibration_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from steerserve.model.lens import LensModel

    Change = Callable[[Tensor], Tensor]
    """From the values of some tokens to what is added to them."""


@torch.inference_mode()
def divergences(lens: LensModel, changes: Mapping[str, Change], medians: Mapping[str, float]) -> Tensor:
    """Return KL(pushed || not) in nats at every token of the calibration texts that is neither special nor a sink."""
    found = []
    for ids in calibration_ids(lens.tokenizer):
        special = torch.tensor([int(token_id) in lens.tokenizer.special_ids for token_id in ids])
        edited = torch.zeros_like(special)
        values = lens.read(ids[None], changes)
        with contextlib.ExitStack() as stack:
            for hook_name, change in changes.items():
                keep = ~special & (values[hook_name][0].norm(dim=-1) <= 5 * medians[hook_name])
                added = torch.where(keep[:, None], change(values[hook_name][0]), 0.0)
                stack.enter_context(lens.hooked(hook_name, lambda value, added=added: value + added))  # type: ignore[misc]
                edited |= keep
            after = torch.distributions.Categorical(logits=lens.forward(ids[None], use_cache=False)[0])
        before = torch.distributions.Categorical(logits=lens.forward(ids[None], use_cache=False)[0])
        found.append(torch.distributions.kl_divergence(after, before)[edited])
    return torch.cat(found)


def dose_by_bisection(lens: LensModel, hook_name: str, median: float, unit: Change) -> float:
    """Return the strength at which the plain 95th percentile is 1 nat."""
    low, high = 1e-3, 1e4
    while high / low > 1.005:
        middle = (low * high) ** 0.5
        nats = divergences(lens, {hook_name: lambda x, s=middle: s * unit(x)}, {hook_name: median})  # type: ignore[misc]
        low, high = (middle, high) if float(nats.quantile(0.95)) < 1 else (low, middle)
    return high

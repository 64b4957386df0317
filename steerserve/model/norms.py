"""How long vectors usually are at each hook point, measured once when the server starts.

Sinks are told from other tokens by their norm. A dictionary records its own median from its training text; this is
for hook points and dictionaries that have none.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from steerserve.model.lens import LensModel

SINK_RATIO = 5.0
"""A token is a sink where its norm is over this many times the median. Source: training.md."""
_MAX_TOKENS = 120
_TEXT = (
    "The harbour was quiet when the ferry came in. Two men threw ropes to the quay, and a girl with a red suitcase "
    "asked one of them the way to the station. He laughed and pointed up the hill. Trains leave every hour until nine, "
    "he said, but the last one is slow: it stops at each village along the coast. She thanked him, bought bread and "
    "three apples at the corner shop, counted her coins, and walked. Behind the church somebody was practising the "
    "piano. It had rained in the morning, and the stones of the street still shone like glass in the low sun."
)


def measure_norms(lens: LensModel) -> dict[str, tuple[float, float]]:
    """Return the median and the mean norm of the vectors at every hook point, special tokens and sinks left out."""
    ids = lens.tokenizer.encode_plain(_TEXT)[: min(_MAX_TOKENS, lens.max_context)]
    found: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack, torch.inference_mode():
        for hook_name in lens.hook_names:

            def keep(x: Tensor, name: str = hook_name) -> None:
                found[name] = x[0].float().norm(dim=-1)

            stack.enter_context(lens.hooked(hook_name, keep))
        lens.forward(torch.tensor([ids], device=lens.device), use_cache=False)
    return {name: _median_and_mean(norms) for name, norms in found.items()}


def _median_and_mean(norms: Tensor) -> tuple[float, float]:
    median = norms.median()
    usual = norms[norms <= SINK_RATIO * median]
    return float(median), float(usual.mean())

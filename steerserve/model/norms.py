"""Norms of the vectors at each hook point, and which tokens count: those that are neither special tokens nor sinks.

An attention sink is a token with an unusually long vector. Edits, readings and training leave out both kinds. A
dictionary records the median norm of its training text; `measure_norms` serves hook points and dictionaries without it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from steerserve.model.lens import LensModel

SINK_RATIO = 5.0
"""A token is a sink if its norm is over this many times the median norm. Source: docs/how-it-works.md, "Edits"."""
_MAX_TOKENS = 120
_TEXT = (
    "The harbour was quiet when the ferry came in. Two men threw ropes to the quay, and a girl with a red suitcase "
    "asked one of them the way to the station. He laughed and pointed up the hill. Trains leave every hour until nine, "
    "he said, but the last one is slow: it stops at each village along the coast. She thanked him, bought bread and "
    "three apples at the corner shop, counted her coins, and walked. Behind the church somebody was practising the "
    "piano. It had rained in the morning, and the stones of the street still shone like glass in the low sun."
)


def counted_tokens(
    x: Float[Tensor, "*tokens width"], is_plain: Bool[Tensor, "*tokens"], sink_norm: float
) -> Bool[Tensor, "*tokens"]:
    """Tell which tokens count.

    Args:
        x: The vectors at the hook point.
        is_plain: Which tokens may count: those that are not special, and not left out for another reason.
        sink_norm: The norm above which a token is a sink.
    """
    counted: Tensor = is_plain.to(x.device) & (x.float().norm(dim=-1) <= sink_norm)
    return counted


def plain_tokens(ids: Sequence[int], special_ids: frozenset[int], device: torch.device) -> Bool[Tensor, " tokens"]:
    """Tell which tokens are not special."""
    return torch.tensor([token_id not in special_ids for token_id in ids], device=device)


def measure_norms(lens: LensModel) -> dict[str, tuple[float, float]]:
    """Return the median and the mean norm of the vectors at every hook point, special tokens and sinks left out."""
    ids = lens.tokenizer.encode_plain(_TEXT)[: min(_MAX_TOKENS, lens.max_context)]
    norms: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack, torch.inference_mode():
        for hook_name in lens.hook_names:

            def keep(x: Tensor, name: str = hook_name) -> None:
                norms[name] = x[0].float().norm(dim=-1)

            stack.enter_context(lens.hooked(hook_name, keep))
        lens.forward(torch.tensor([ids], device=lens.device), use_cache=False)
    return {name: _median_and_mean(values) for name, values in norms.items()}


def _median_and_mean(norms: Tensor) -> tuple[float, float]:
    median = norms.median()
    usual = norms[norms <= SINK_RATIO * median]
    return float(median), float(usual.mean())

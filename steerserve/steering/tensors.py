"""Builds the tensors of `steerserve.steering.apply` from resolved edits."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from steerserve.model.norms import SINK_RATIO
from steerserve.steering.apply import Reads, Rules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from steerserve.dictionaries.dictionary import FeatureColumns
    from steerserve.steering.resolved import ResolvedEdit

_INF = float("inf")


def rules_of(edits: Sequence[ResolvedEdit], median_norms: Mapping[str, float], device: torch.device) -> Rules:
    """Return the rules of a sequence's edits, as one row."""
    numbers = [_rule(edit, median_norms) for edit in edits]
    names = [field.name for field in fields(Rules)]
    table = torch.tensor([[rule[name] for rule in numbers] for name in names], dtype=torch.float32, device=device)
    return Rules(**dict(zip(names, table[:, None].unbind(0), strict=True)))


def _rule(edit: ResolvedEdit, median_norms: Mapping[str, float]) -> dict[str, float]:
    """Return the rule of one edit, by field of `Rules`."""
    median = edit.dictionary.median_norm if edit.dictionary is not None else median_norms[edit.hook_name]
    gate = edit.gate
    return {
        **_formula(edit),
        "sink_norm": _INF if edit.special_tokens else SINK_RATIO * median,
        "special_tokens": edit.special_tokens,
        "start": edit.start,
        "stop": _INF if edit.stop is None else edit.stop,
        "ramp": max(edit.ramp, 1),
        "above": -_INF if gate is None or gate.above is None else gate.above,
        "below": _INF if gate is None or gate.below is None else gate.below,
    }


def _formula(edit: ResolvedEdit) -> dict[str, float]:
    """Return the numbers of `df = clip(slope * f + offset, low, high)`. Source: docs/how-it-works.md, "Edits"."""
    scale = edit.raw_scale or 0.0
    no_clip = {"low": -_INF, "high": _INF}
    return {
        "add": {"slope": 0.0, "offset": scale, **no_clip},
        "clamp": {"slope": -1.0, "offset": scale, **no_clip},
        "multiply": {"slope": scale - 1.0, "offset": 0.0, **no_clip},
        "ablate": {"slope": -1.0, "offset": 0.0, **no_clip},
        "remove": {"slope": -1.0, "offset": 0.0, **no_clip},
        "floor": {"slope": -1.0, "offset": scale, "low": 0.0, "high": _INF},
        "ceiling": {"slope": -1.0, "offset": scale, "low": -_INF, "high": 0.0},
    }[edit.mode]


def feature_reads(features: FeatureColumns, columns: Sequence[int]) -> Reads:
    """Return the reads of these features, as one row; their activations go to these columns of the pass."""
    return Reads(
        encoder=features.encoder[None],
        gain=features.gain[None],
        bias=features.bias[None],
        gate_bias=features.gate_bias[None],
        threshold=features.threshold[None],
        least=torch.zeros_like(features.gain)[None],
        columns=torch.tensor([columns], device=features.gain.device),
    )


def projection_reads(units: Tensor, columns: Sequence[int]) -> Reads:
    """Return the reads of the projections on unit vectors `[reads, d_in]`, as one row."""
    zeros = torch.zeros_like(units[None, :, 0])
    return Reads(
        encoder=units[None],
        gain=torch.ones_like(zeros),
        bias=zeros,
        gate_bias=zeros,
        threshold=zeros - _INF,
        least=zeros - _INF,
        columns=torch.tensor([columns], device=units.device),
    )


def written_direction(edit: ResolvedEdit, device: torch.device) -> Tensor:
    """Return the direction `[d_out]` that the edit adds to the stream, of length 1 for mode `remove`."""
    if edit.dictionary is not None and edit.feature is not None:
        decoder: Tensor = edit.dictionary.sae.W_dec.detach()
        direction = decoder[edit.feature].to(device)
    else:
        direction = torch.tensor(edit.vector, dtype=torch.float32, device=device)
    if edit.mode == "remove":
        direction = (direction.double() / direction.double().norm()).float()
    return direction

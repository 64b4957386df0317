"""From resolved edits to the tensors that the arithmetic takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from steerserve.model.norms import SINK_RATIO
from steerserve.steering.apply import Coefficients, PointwiseEdits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from steerserve.steering.resolve import ResolvedEdit

_INF = float("inf")


def edit_coefficients(
    edits: Sequence[ResolvedEdit], median_norms: Mapping[str, float], device: torch.device
) -> Coefficients:
    """Return how each edit of a sequence changes its activation, as one row."""
    rows = []
    for edit in edits:
        slope, offset, low, high = _formula(edit)
        median = edit.dictionary.median_norm if edit.dictionary is not None else median_norms[edit.hook_name]
        rows.append((slope, offset, low, high, _INF if edit.special_tokens else SINK_RATIO * median))
    return Coefficients(*torch.tensor(rows, dtype=torch.float32, device=device).T[:, None].unbind(0))


def _formula(edit: ResolvedEdit) -> tuple[float, float, float, float]:
    """Return slope, offset, low and high of `df = clip(slope * f + offset, low, high)`. Source: api.md section 2.2."""
    scale = edit.raw_scale or 0.0
    return {
        "add": (0.0, scale, -_INF, _INF),
        "clamp": (-1.0, scale, -_INF, _INF),
        "multiply": (scale - 1.0, 0.0, -_INF, _INF),
        "ablate": (-1.0, 0.0, -_INF, _INF),
        "remove": (-1.0, 0.0, -_INF, _INF),
        "floor": (-1.0, scale, 0.0, _INF),
        "ceiling": (-1.0, scale, -_INF, 0.0),
    }[edit.mode]


def pointwise_edits(
    edits: Sequence[ResolvedEdit], how: Coefficients, strength: float, device: torch.device
) -> PointwiseEdits:
    """Return what reading and writing these edits takes, as one row."""
    parts = [_one_pointwise(edit, device) for edit in edits]
    joined = [torch.cat(values)[None] for values in zip(*parts, strict=True)]
    encoder, gain, bias, gate_bias, threshold, least, direction = joined
    return PointwiseEdits(
        coefficients=how,
        encoder=encoder,
        gain=gain,
        bias=bias,
        gate_bias=gate_bias,
        threshold=threshold,
        least=least,
        direction=direction * strength,
        direction_norm=direction.norm(dim=-1) * abs(strength),
    )


def _one_pointwise(edit: ResolvedEdit, device: torch.device) -> tuple[Tensor, ...]:
    """Return one edit's encoder, gain, bias, gate bias, threshold, least activation and direction."""
    zero = torch.zeros(1, device=device)
    open_gate = torch.full((1,), -_INF, device=device)
    if edit.dictionary is not None and edit.feature is not None and edit.mode != "remove":
        columns = edit.dictionary.columns([edit.feature])
        return (
            columns.encoder,
            columns.gain,
            columns.bias,
            columns.gate_bias,
            columns.threshold,
            zero,
            columns.decoder,
        )
    direction = _direction(edit, device)
    if edit.mode == "remove":
        unit = (direction.double() / direction.double().norm()).float()
        return unit, torch.ones_like(zero), zero, zero, open_gate, open_gate, unit
    return torch.zeros_like(direction), zero, zero, zero, open_gate, zero, direction


def _direction(edit: ResolvedEdit, device: torch.device) -> Tensor:
    if edit.dictionary is not None and edit.feature is not None:
        decoder: Tensor = edit.dictionary.sae.W_dec.detach()
        return decoder[edit.feature][None].to(device)
    return torch.tensor(edit.vector, dtype=torch.float32, device=device)[None]

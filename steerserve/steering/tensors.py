"""From resolved edits to the tensors that the arithmetic takes."""

from __future__ import annotations

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
    """Return how edits of a sequence change their activations, and of which tokens, as one row."""
    rows = []
    for edit in edits:
        median = edit.dictionary.median_norm if edit.dictionary is not None else median_norms[edit.hook_name]
        sink_norm = _INF if edit.special_tokens else SINK_RATIO * median
        stop = _INF if edit.stop is None else edit.stop
        window = (edit.special_tokens, edit.start, stop, max(edit.ramp, 1))
        rows.append((*_formula(edit), sink_norm, *window, *_bounds(edit)))
    return Rules(*torch.tensor(rows, dtype=torch.float32, device=device).T[:, None].unbind(0))


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


def _bounds(edit: ResolvedEdit) -> tuple[float, float]:
    """Return between which activations the gate passes."""
    gate = edit.gate
    above = -_INF if gate is None or gate.above is None else gate.above
    below = _INF if gate is None or gate.below is None else gate.below
    return above, below


def feature_reads(found: FeatureColumns, columns: Sequence[int]) -> Reads:
    """Return what reading these features takes, as one row that goes to these columns of a pass."""
    return Reads(
        encoder=found.encoder[None],
        gain=found.gain[None],
        bias=found.bias[None],
        gate_bias=found.gate_bias[None],
        threshold=found.threshold[None],
        least=torch.zeros_like(found.gain)[None],
        columns=torch.tensor([columns], device=found.gain.device),
    )


def projection_reads(units: Tensor, columns: Sequence[int]) -> Reads:
    """Return what reading the projections on unit vectors `[reads, d_in]` takes, as one row."""
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
    """Return what one unit of the edit's delta adds to the stream, `[d_out]`: for `remove` the unit vector."""
    if edit.dictionary is not None and edit.feature is not None:
        decoder: Tensor = edit.dictionary.sae.W_dec.detach()
        direction = decoder[edit.feature].to(device)
    else:
        direction = torch.tensor(edit.vector, dtype=torch.float32, device=device)
    if edit.mode == "remove":
        direction = (direction.double() / direction.double().norm()).float()
    return direction

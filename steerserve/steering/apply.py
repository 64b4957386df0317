"""The arithmetic of edits, as pure functions of the values at a hook point. Float32 whatever the model's dtype.

Every mode is one choice of `df = clip(slope * f + offset, low, high)`, `f` the activation on the unedited stream, and
`dx = sum(df * direction)`. Sums over a row's edits run in a fixed order and are never regrouped, so that a row's bits
do not depend on how many edits its neighbours carry.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from steerserve.dictionaries.dictionary import Dictionary

_TINY = 1e-12
NUM_SUMS = 4
"""Edited tokens, skipped tokens, activation, relative change: what a receipt is made of."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """How each edit changes its activation; the leading dimension is one row's, or 1 for all rows alike."""

    slope: Float[Tensor, "rows edits"]
    offset: Float[Tensor, "rows edits"]
    low: Float[Tensor, "rows edits"]
    high: Float[Tensor, "rows edits"]
    sink_norm: Float[Tensor, "rows edits"]
    """A token whose vector is longer is a sink and left alone; infinity edits sinks too."""


@dataclass(frozen=True, slots=True)
class PointwiseEdits:
    """Edits whose activation needs one column each."""

    coefficients: Coefficients
    encoder: Float[Tensor, "rows edits d_in"]
    gain: Float[Tensor, "rows edits"]
    bias: Float[Tensor, "rows edits"]
    gate_bias: Float[Tensor, "rows edits"]
    threshold: Float[Tensor, "rows edits"]
    least: Float[Tensor, "rows edits"]
    """0 for a feature (its ReLU), minus infinity where the plain projection is meant."""
    direction: Float[Tensor, "rows edits d_in"]
    """Times the request's strength."""
    direction_norm: Float[Tensor, "rows edits"]


@dataclass(frozen=True, slots=True)
class Change:
    """What edits do to some rows."""

    dx: Float[Tensor, "rows d_in"]
    sums: Float[Tensor, "rows edits sums"]


def apply_pointwise(
    x: Float[Tensor, "rows d_in"],
    edits: PointwiseEdits,
    in_window: Bool[Tensor, "rows edits"],
    may_edit: Bool[Tensor, "rows edits"],
) -> Change:
    """Return the change of each row.

    `in_window` says which edits mean the row's token, `may_edit` where that token is not a special one left alone.
    Source: api.md section 2.2; tests hold it to SAELens' own splice.
    """
    # Many tokens of one request are one product; rows of different requests are kept apart for the sake of their bits.
    is_shared = edits.encoder.shape[0] == 1 < x.shape[0]
    pre = x @ edits.encoder[0].T if is_shared else (edits.encoder * x[:, None, :]).sum(-1)
    acts = torch.maximum(pre * edits.gain + edits.bias, edits.least)
    acts = acts * (pre + edits.gate_bias > edits.threshold)
    return _change(x, edits.coefficients, acts, in_window, may_edit, edits.direction, edits.direction_norm)


def _change(
    x: Tensor,
    how: Coefficients,
    acts: Float[Tensor, "rows edits"],
    in_window: Tensor,
    may_edit: Tensor,
    direction: Tensor,
    direction_norm: Tensor,
) -> Change:
    norm = x.norm(dim=-1, keepdim=True)
    edited = in_window & may_edit & (norm <= how.sink_norm)
    delta = clipped_delta(how, acts) * edited
    dx = delta[:, 0, None] * direction[:, 0]
    for place in range(1, delta.shape[1]):
        dx = torch.addcmul(dx, delta[:, place, None], direction[:, place])
    return Change(dx, tally(edited, in_window, acts, delta.abs() * direction_norm / norm.clamp(min=_TINY)))


def clipped_delta(how: Coefficients, acts: Float[Tensor, "rows edits"]) -> Float[Tensor, "rows edits"]:
    """Return `df` of each edit."""
    return torch.minimum(torch.maximum(how.slope * acts + how.offset, how.low), how.high)


def tally(edited: Tensor, in_window: Tensor, acts: Tensor, change: Tensor) -> Float[Tensor, "rows edits sums"]:
    """Return the four sums of a receipt for these rows."""
    return torch.stack((edited, in_window & ~edited, acts * edited, change), dim=-1).double()


def apply_full(
    x: Float[Tensor, "rows d_in"],
    dictionary: Dictionary,
    features: Tensor,
    how: Coefficients,
    strength: float,
    masks: tuple[Bool[Tensor, "rows edits"], Bool[Tensor, "rows edits"]],
) -> Change:
    """Return the change of each row where an activation depends on the whole encoding, as in TopK dictionaries."""
    in_window, may_edit = masks
    acts = dictionary.encode(x)
    norm = x.norm(dim=-1, keepdim=True)
    edited = in_window & may_edit & (norm <= how.sink_norm)
    delta = clipped_delta(how, acts[:, features]) * edited
    dx = strength * (dictionary.decode(x, acts.index_add(1, features, delta)) - dictionary.decode(x, acts))
    # Decoders are affine, so each edit's part of the change is its share of the sum, whatever scale the decoder adds.
    directions = dictionary.directions(features)
    scale = dx.norm(dim=-1) / (delta @ directions).norm(dim=-1).clamp(min=_TINY)
    change = scale[:, None] * delta.abs() * directions.norm(dim=-1) / norm.clamp(min=_TINY)
    return Change(dx, tally(edited, in_window, acts[:, features], change))


def stack_rows(rows: list[Any]) -> Any:  # noqa: ANN401 Coefficients or PointwiseEdits, whichever is given
    """Stack edits of several rows into one, padded with edits that change nothing."""
    kind = type(rows[0])
    columns = {}
    for field in fields(kind):
        values = [getattr(row, field.name) for row in rows]
        if isinstance(values[0], Coefficients):
            columns[field.name] = stack_rows(values)
            continue
        most = max(value.shape[1] for value in values)
        stacked = values[0].new_zeros((len(values), most, *values[0].shape[2:]))
        for place, value in enumerate(values):
            stacked[place, : value.shape[1]] = value[0]
        columns[field.name] = stacked
    return kind(**columns)

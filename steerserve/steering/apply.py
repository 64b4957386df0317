"""The arithmetic of edits, as pure functions of the values at a hook point. Float32 whatever the model's dtype.

Every mode is one choice of `df = clip(slope * f + offset, low, high)`, `f` the activation on the unedited stream, and
`dx = sum(df * direction)`. Sums over a row's edits run in a fixed order and are never regrouped, so that a row's bits
do not depend on how many edits its neighbours carry. What an edit does not touch keeps its bits.

A "line" is one token: one row of a decode batch, or one token of a prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from steerserve.dictionaries.dictionary import Dictionary

_TINY = 1e-12
_LARGEST = torch.finfo(torch.float32).max
NUM_SUMS = 7
"""Of each edit: tokens edited, special, sinks, stopped by the gate, passed by it; activation, relative change."""


@dataclass(frozen=True, slots=True)
class Reads:
    """Activations that need one column each; the leading dimension is one row's, or 1 for all lines alike.

    `act = max(pre * gain + bias, least)` where `pre + gate_bias > threshold`, and `pre = x . encoder`.
    """

    encoder: Float[Tensor, "rows reads d_in"]
    gain: Float[Tensor, "rows reads"]
    bias: Float[Tensor, "rows reads"]
    gate_bias: Float[Tensor, "rows reads"]
    threshold: Float[Tensor, "rows reads"]
    least: Float[Tensor, "rows reads"]
    """0 for a feature (its ReLU), minus infinity where the plain projection is meant."""
    columns: Int[Tensor, "rows reads"]
    """Where a pass keeps them."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How edits change their activations, and of which tokens; dimensions as in `Reads`."""

    slope: Float[Tensor, "rows edits"]
    offset: Float[Tensor, "rows edits"]
    low: Float[Tensor, "rows edits"]
    high: Float[Tensor, "rows edits"]
    sink_norm: Float[Tensor, "rows edits"]
    """A token whose vector is longer is a sink and left alone; infinity edits sinks too."""
    special_tokens: Float[Tensor, "rows edits"]
    """1 where special tokens are edited, else 0."""
    start: Float[Tensor, "rows edits"]
    stop: Float[Tensor, "rows edits"]
    """Generated tokens `start <= i < stop` are meant."""
    ramp: Float[Tensor, "rows edits"]
    """At least 1: the tokens from `start` on over which the change grows."""
    above: Float[Tensor, "rows edits"]
    below: Float[Tensor, "rows edits"]
    """The gate passes where its activation lies between the two."""


@dataclass(frozen=True, slots=True)
class Edits:
    """Edits that each add a multiple of one direction."""

    rules: Rules
    act_columns: Int[Tensor, "rows edits"]
    gate_columns: Int[Tensor, "rows edits"]
    """Where the pass keeps what they go by."""
    direction: Float[Tensor, "rows edits d_out"]
    """Times the request's strength."""
    direction_norm: Float[Tensor, "rows edits"]


class Lines(NamedTuple):
    """What the rules ask of the tokens of a pass."""

    generated_index: Float[Tensor, "lines 1"]
    """0 for tokens of a prompt, where edits have no window."""
    is_special: Float[Tensor, "lines 1"]
    """1 or 0."""


class Decision(NamedTuple):
    """What the edits of some lines do: to their activations, and for the receipt."""

    delta: Float[Tensor, "lines edits"]
    edited: Tensor
    counts: tuple[Tensor, ...]


class Change(NamedTuple):
    """What edits do to some lines."""

    dx: Float[Tensor, "lines d_out"]
    sums: Float[Tensor, "lines edits sums"]
    delta: Float[Tensor, "lines edits"]
    """Of the activations, without the request's strength."""


def read(x: Float[Tensor, "lines d_in"], reads: Reads) -> Float[Tensor, "lines reads"]:
    """Return the activations."""
    # Many tokens of one request are one product; rows of different requests are kept apart for the sake of their bits.
    is_shared = reads.encoder.shape[0] == 1 < x.shape[0]
    pre = x @ reads.encoder[0].T if is_shared else (reads.encoder * x[:, None, :]).sum(-1)
    acts = torch.maximum(pre * reads.gain + reads.bias, reads.least)
    return acts * (pre + reads.gate_bias > reads.threshold)


def decide(x: Float[Tensor, "lines d_out"], rules: Rules, acts: Tensor, gate_acts: Tensor, lines: Lines) -> Decision:
    """Return `df` of each edit on each line, 0 where it leaves the token alone.

    Source: api.md sections 2.1 and 2.2; tests hold it to SAELens' own splice.
    """
    since = lines.generated_index - rules.start
    meant = (since >= 0) & (lines.generated_index < rules.stop)
    norm = x.norm(dim=-1, keepdim=True)
    may_edit = lines.is_special <= rules.special_tokens
    is_usual = norm <= rules.sink_norm
    passes = (gate_acts > rules.above) & (gate_acts < rules.below)
    touchable = meant & may_edit & is_usual
    edited = touchable & passes
    delta = torch.minimum(torch.maximum(rules.slope * acts + rules.offset, rules.low), rules.high)
    delta = torch.where(edited, delta * ((since + 1) / rules.ramp).clamp(max=1), 0.0)
    counts = (edited, meant & ~may_edit, meant & may_edit & ~is_usual, touchable & ~passes, meant & passes)
    return Decision(delta, edited, counts)


def apply_edits(x: Float[Tensor, "lines d_out"], edits: Edits, acts: Tensor, gate_acts: Tensor, lines: Lines) -> Change:
    """Return the change of each line."""
    decision = decide(x, edits.rules, acts, gate_acts, lines)
    delta = decision.delta
    dx = delta[:, 0, None] * edits.direction[:, 0]
    for place in range(1, delta.shape[1]):
        dx = torch.addcmul(dx, delta[:, place, None], edits.direction[:, place])
    change = delta.abs().double() * edits.direction_norm
    return Change(dx, _tally(decision, acts, _relative(change, x)), delta)


@dataclass(frozen=True, slots=True)
class FullEdits:
    """Edits of features whose activations depend on the whole encoding, as in TopK dictionaries; of one request."""

    rules: Rules
    gate_columns: Int[Tensor, "1 edits"]
    dictionary: Dictionary
    features: Int[Tensor, " edits"]
    strength: float
    written: Float[Tensor, "edits d_out"] | None = None
    """Of a control: what is written in place of the features' own directions."""


class Encoding(NamedTuple):
    """What a dictionary made of its input."""

    x: Float[Tensor, "lines d_in"]
    acts: Float[Tensor, "lines d_sae"]


def apply_full(
    x: Float[Tensor, "lines d_out"], edits: FullEdits, encoding: Encoding, gate_acts: Tensor, lines: Lines
) -> Change:
    """Return the change of each line, by the dictionary's own decoder."""
    acts = encoding.acts[:, edits.features]
    decision = decide(x, edits.rules, acts, gate_acts, lines)
    delta = decision.delta
    decode = edits.dictionary.decode
    after = decode(encoding.x, encoding.acts.index_add(1, edits.features, delta))
    dx = edits.strength * (after - decode(encoding.x, encoding.acts))
    dx = torch.where(decision.edited.any(-1, keepdim=True), dx, 0.0)
    # Decoders are affine, so each edit's part of the change is its share of the sum, whatever scale the decoder adds.
    directions = edits.dictionary.directions(edits.features)
    together = delta @ directions
    change = (_norm(dx) / _norm(together).clamp(min=_TINY))[:, None] * delta.abs() * directions.norm(dim=-1)
    if edits.written is not None:
        scale = dx.norm(dim=-1) / together.norm(dim=-1).clamp(min=_TINY)
        dx = math.copysign(1.0, edits.strength) * scale[:, None] * (delta @ edits.written)
    return Change(dx, _tally(decision, acts, _relative(change, x)), delta)


def changed(x: Tensor, dx: Tensor) -> Tensor:
    """Return the sum of both; where nothing is added, even a negative zero keeps its sign."""
    return torch.where(dx == 0, x, x + dx)


def _relative(change: Float[Tensor, "lines edits"], x: Float[Tensor, "lines d_out"]) -> Float[Tensor, "lines edits"]:
    """Return lengths over that of `x`, in float64: the square of `x` overflows float32 long before `x` does."""
    return change / _norm(x)[:, None].clamp(min=_TINY)


def _norm(x: Float[Tensor, "lines d_out"]) -> Float[Tensor, " lines"]:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    return norm


def _tally(decision: Decision, acts: Tensor, change: Tensor) -> Float[Tensor, "lines edits sums"]:
    activation = torch.where(decision.edited, acts, 0.0)
    parts = torch.stack((*decision.counts, activation, change), dim=-1)
    # Sums stay finite even where a value is not: JSON has no word for what is not.
    return torch.nan_to_num(parts, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)


def stack_rows(rows: list[Any]) -> Any:  # noqa: ANN401 Reads or Edits, whichever is given
    """Stack what several rows carry into one, padded with zeros, which read and change nothing."""
    kind = type(rows[0])
    columns = {}
    for field in fields(kind):
        values = [getattr(row, field.name) for row in rows]
        if is_dataclass(values[0]):
            columns[field.name] = stack_rows(values)
            continue
        most = max(value.shape[1] for value in values)
        stacked = values[0].new_zeros((len(values), most, *values[0].shape[2:]))
        for place, value in enumerate(values):
            stacked[place, : value.shape[1]] = value[0]
        columns[field.name] = stacked
    return kind(**columns)

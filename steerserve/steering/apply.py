"""The arithmetic of edits, as pure functions of the values at a hook point. Float32 whatever the model's dtype.

Every mode is one choice of `df = clip(slope * f + offset, low, high)`, where `f` is the activation on the unedited
stream, and `dx = sum(df * direction)`. Sums over a row's edits run in a fixed order and are never regrouped, so that a
row's bits do not depend on how many edits other rows have. Values that no edit changes keep their bits.

The dimension `tokens` is one token of each row in a decode batch, and all tokens of one row in a prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from steerserve.steering.receipt import EditTally

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from steerserve.dictionaries.dictionary import Dictionary

_TINY = 1e-12
_LARGEST = torch.finfo(torch.float32).max
SUM_NAMES = tuple(field.name for field in fields(EditTally))
"""Names of the sums that are kept of each edit, in the order of the tensors' last dimension."""


@dataclass(frozen=True, slots=True)
class Reads:
    """How to compute activations that need one encoder column each. The first dimension is 1 if all rows share them.

    With `pre = x . encoder`: `act = max(pre * gain + bias, least)` if `pre + gate_bias > threshold`, else 0.
    """

    encoder: Float[Tensor, "rows reads d_in"]
    gain: Float[Tensor, "rows reads"]
    bias: Float[Tensor, "rows reads"]
    gate_bias: Float[Tensor, "rows reads"]
    threshold: Float[Tensor, "rows reads"]
    least: Float[Tensor, "rows reads"]
    """Lower bound of the activation: 0 for a feature (its ReLU), minus infinity for a plain projection."""
    columns: Int[Tensor, "rows reads"]
    """Columns of the pass's activations that they are written to."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How edits change activations, and at which tokens. Dimensions as in `Reads`."""

    slope: Float[Tensor, "rows edits"]
    offset: Float[Tensor, "rows edits"]
    low: Float[Tensor, "rows edits"]
    high: Float[Tensor, "rows edits"]
    sink_norm: Float[Tensor, "rows edits"]
    """Norm above which a token is a sink and not edited; infinity if sinks are edited too."""
    special_tokens: Float[Tensor, "rows edits"]
    """1 if special tokens are edited, else 0."""
    start: Float[Tensor, "rows edits"]
    stop: Float[Tensor, "rows edits"]
    """Generated tokens `start <= i < stop` are edited."""
    ramp: Float[Tensor, "rows edits"]
    """Number of tokens from `start` on over which the change grows; at least 1."""
    above: Float[Tensor, "rows edits"]
    below: Float[Tensor, "rows edits"]
    """The gate passes if its activation is larger than `above` and smaller than `below`."""


@dataclass(frozen=True, slots=True)
class Edits:
    """Edits that each add a multiple of one direction."""

    rules: Rules
    act_columns: Int[Tensor, "rows edits"]
    gate_columns: Int[Tensor, "rows edits"]
    """Columns of the pass's activations that hold the gates' and the edits' activations."""
    direction: Float[Tensor, "rows edits d_out"]
    """Direction of each edit times the request's strength."""
    direction_norm: Float[Tensor, "rows edits"]


class TokenRoles(NamedTuple):
    """What the rules need to know about the tokens of a pass."""

    generated_index: Float[Tensor, "tokens 1"]
    """Index of a generated token; 0 for tokens of a prompt, where edits have no start and stop."""
    is_special: Float[Tensor, "tokens 1"]
    """1 for a special token, else 0."""


class Decision(NamedTuple):
    """What edits do at tokens: the change of each activation, and the counts for the receipt."""

    delta: Float[Tensor, "tokens edits"]
    edited: Tensor
    counts: dict[str, Tensor]
    """For each field of `EditTally`, a mask `[tokens, edits]` of the tokens that it counts."""


class Change(NamedTuple):
    """What edits do to the vectors of tokens."""

    dx: Float[Tensor, "tokens d_out"]
    sums: Float[Tensor, "tokens edits sums"]
    delta: Float[Tensor, "tokens edits"]
    """Change of the activations, without the request's strength."""


def read(x: Float[Tensor, "tokens d_in"], reads: Reads) -> Float[Tensor, "tokens reads"]:
    """Return the activations."""
    # Many tokens of one request are one product. Rows of different requests are computed apart, to keep their bits.
    is_shared = reads.encoder.shape[0] == 1 < x.shape[0]
    pre = x @ reads.encoder[0].T if is_shared else (reads.encoder * x[:, None, :]).sum(-1)
    acts = torch.maximum(pre * reads.gain + reads.bias, reads.least)
    return acts * (pre + reads.gate_bias > reads.threshold)


def decide(
    x: Float[Tensor, "tokens d_out"], rules: Rules, acts: Tensor, gate_acts: Tensor, roles: TokenRoles
) -> Decision:
    """Return `df` of each edit at each token, 0 if the edit does not apply to the token.

    Source: docs/how-it-works.md, "Edits"; tests compare it with SAELens' own splice.
    """
    since = roles.generated_index - rules.start
    in_window = (since >= 0) & (roles.generated_index < rules.stop)
    norm = x.norm(dim=-1, keepdim=True)
    may_edit = roles.is_special <= rules.special_tokens
    is_usual = norm <= rules.sink_norm
    passes = (gate_acts > rules.above) & (gate_acts < rules.below)
    touchable = in_window & may_edit & is_usual
    edited = touchable & passes
    delta = torch.minimum(torch.maximum(rules.slope * acts + rules.offset, rules.low), rules.high)
    delta = torch.where(edited, delta * ((since + 1) / rules.ramp).clamp(max=1), 0.0)
    counts = {
        "num_edited": edited,
        "num_special": in_window & ~may_edit,
        "num_sinks": in_window & may_edit & ~is_usual,
        "num_stopped": touchable & ~passes,
        "num_passed": in_window & passes,
    }
    return Decision(delta, edited, counts)


def apply_edits(
    x: Float[Tensor, "tokens d_out"], edits: Edits, acts: Tensor, gate_acts: Tensor, roles: TokenRoles
) -> Change:
    """Return the change of each token's vector."""
    decision = decide(x, edits.rules, acts, gate_acts, roles)
    delta = decision.delta
    dx = delta[:, 0, None] * edits.direction[:, 0]
    for edit in range(1, delta.shape[1]):
        dx = torch.addcmul(dx, delta[:, edit, None], edits.direction[:, edit])
    change = delta.abs().double() * edits.direction_norm
    return Change(dx, _tally(decision, acts, _relative(change, x)), delta)


@dataclass(frozen=True, slots=True)
class FullEdits:
    """Edits of one request whose activations depend on the whole encoding, as in TopK dictionaries."""

    rules: Rules
    gate_columns: Int[Tensor, "1 edits"]
    dictionary: Dictionary
    features: Int[Tensor, " edits"]
    strength: float
    control_directions: Float[Tensor, "edits d_out"] | None = None
    """Directions that a control writes instead of the features' own."""


class Encoding(NamedTuple):
    """The input of a dictionary with its encoding."""

    x: Float[Tensor, "tokens d_in"]
    acts: Float[Tensor, "tokens d_sae"]


def apply_full(
    x: Float[Tensor, "tokens d_out"], edits: FullEdits, encoding: Encoding, gate_acts: Tensor, roles: TokenRoles
) -> Change:
    """Return the change of each token's vector, computed by the dictionary's own decoder."""
    acts = encoding.acts[:, edits.features]
    decision = decide(x, edits.rules, acts, gate_acts, roles)
    delta = decision.delta
    decode = edits.dictionary.decode
    after = decode(encoding.x, encoding.acts.index_add(1, edits.features, delta))
    dx = edits.strength * (after - decode(encoding.x, encoding.acts))
    dx = torch.where(decision.edited.any(-1, keepdim=True), dx, 0.0)
    # Decoders are affine: if a decoder rescales its output, it scales the parts of all edits by the same factor.
    directions = edits.dictionary.directions(edits.features)
    together = delta @ directions
    change = (_norm(dx) / _norm(together).clamp(min=_TINY))[:, None] * delta.abs() * directions.norm(dim=-1)
    if edits.control_directions is not None:
        scale = dx.norm(dim=-1) / together.norm(dim=-1).clamp(min=_TINY)
        dx = math.copysign(1.0, edits.strength) * scale[:, None] * (delta @ edits.control_directions)
    return Change(dx, _tally(decision, acts, _relative(change, x)), delta)


def changed(x: Tensor, dx: Tensor) -> Tensor:
    """Return `x + dx`; where `dx` is 0, `x` keeps its bits, even a negative zero its sign."""
    return torch.where(dx == 0, x, x + dx)


def _relative(change: Float[Tensor, "tokens edits"], x: Float[Tensor, "tokens d_out"]) -> Float[Tensor, "tokens edits"]:
    """Return the lengths as shares of that of `x`, in float64, as the square of `x` can overflow float32."""
    return change / _norm(x)[:, None].clamp(min=_TINY)


def _norm(x: Float[Tensor, "tokens d_out"]) -> Float[Tensor, " tokens"]:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    return norm


def _tally(decision: Decision, acts: Tensor, change: Tensor) -> Float[Tensor, "tokens edits sums"]:
    activation = torch.where(decision.edited, acts, 0.0)
    sums = {**decision.counts, "sum_activation": activation, "sum_change": change}
    parts = torch.stack([sums[name] for name in SUM_NAMES], dim=-1)
    # Sums stay finite even if a value is not, as JSON has no infinity.
    return torch.nan_to_num(parts, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)


def stack_rows(rows: list[Any]) -> Any:  # noqa: ANN401 Reads or Edits, as given
    """Stack the tensors of several rows, field by field, padded with zeros, which read and change nothing."""
    kind = type(rows[0])
    columns = {}
    for field in fields(kind):
        values = [getattr(row, field.name) for row in rows]
        if is_dataclass(values[0]):
            columns[field.name] = stack_rows(values)
            continue
        width = max(value.shape[1] for value in values)
        stacked = values[0].new_zeros((len(values), width, *values[0].shape[2:]))
        for row, value in enumerate(values):
            stacked[row, : value.shape[1]] = value[0]
        columns[field.name] = stacked
    return kind(**columns)

"""Where the edits of one sequence read and write: the work at each hook point.

An activation is read at the hook point of its dictionary, once for all gates and edits that use it, and kept in a
column of the pass. Edits use it at the same hook point or at a later one: gates may read earlier, and transcoders read
before they write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch

from steerserve.steering.apply import Edits, FullEdits, Reads
from steerserve.steering.rotation import rotated
from steerserve.steering.tensors import feature_reads, projection_reads, rules_of, written_direction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.resolved import ResolvedEdit

_ZERO_COLUMN = 1
"""A column that is always 0, for edits without an activation. Padding entries of shorter rows point to column 0."""
_FIRST_COLUMN = 2
"""The first column for activations."""


@dataclass(frozen=True, slots=True)
class FullRead:
    """Features that are read by computing the whole encoding."""

    dictionary: Dictionary
    features: Tensor
    columns: Tensor
    is_kept: bool
    """Whether edits need the whole encoding."""


@dataclass(slots=True)
class HookPart:
    """The work at one hook point: first the reads, then the edits."""

    reads: Reads | None = None
    full_reads: list[FullRead] = field(default_factory=list)
    edits: Edits | None = None
    edit_indices: Tensor | None = None
    """Indices of `edits` among all edits of the sequence."""
    full_edits: list[tuple[Tensor, FullEdits]] = field(default_factory=list)
    """Full edits with their indices among all edits of the sequence."""


@dataclass(frozen=True, slots=True)
class EditLayout:
    """The work at all hook points."""

    parts: dict[str, HookPart]
    """The work at each hook point."""
    num_columns: int
    """Number of columns for activations."""


def in_fixed_order(edits: Sequence[ResolvedEdit]) -> list[tuple[int, ResolvedEdit]]:
    """Return edits with their indices, sorted by their properties.

    The order in which a client wrote them must not change how sums are rounded, as such requests share prompts.
    """
    keys = [json.dumps(edit.identity(), sort_keys=True) for edit in edits]
    return [(index, edits[index]) for index in sorted(range(len(edits)), key=keys.__getitem__)]


def lay_out(
    indexed: Sequence[tuple[int, ResolvedEdit]],
    strength: float,
    median_norms: Mapping[str, float],
    device: torch.device,
) -> EditLayout:
    """Lay out edits of one sequence.

    Args:
        indexed: The edits with their indices among all edits of the sequence.
        strength: The request's strength.
        median_norms: Median norm at each hook point, which tells sinks apart for edits of vectors.
        device: Where the tensors go.
    """
    columns = _Columns()
    kinds: dict[tuple[str, str | None], list[tuple[int, ResolvedEdit]]] = {}
    for index, edit in indexed:
        kinds.setdefault((edit.hook_name, _fully_encoded(edit)), []).append((index, edit))
    parts: dict[str, HookPart] = {}
    for (hook_name, dictionary_id), group in kinds.items():
        part = parts.setdefault(hook_name, HookPart())
        edits = [edit for _, edit in group]
        edit_indices = torch.tensor([index for index, _ in group], device=device)
        rules = rules_of(edits, median_norms, device)
        gate_columns = torch.tensor([[columns.of_gate(edit) for edit in edits]], device=device)
        if dictionary_id is None:
            directions = torch.stack([written_direction(edit, device) for edit in edits])
            part.edit_indices = edit_indices
            act_columns = [columns.of_edit(edit, direction) for edit, direction in zip(edits, directions, strict=True)]
            part.edits = Edits(
                rules=rules,
                act_columns=torch.tensor([act_columns], device=device),
                gate_columns=gate_columns,
                direction=(_written(directions, edits) * strength)[None],
                direction_norm=(directions.norm(dim=-1) * abs(strength))[None],
            )
        else:
            dictionary = columns.of_full_edits(edits)
            features = torch.tensor([edit.feature for edit in edits], device=device)
            is_control = edits[0].control_seed is not None
            full = FullEdits(
                rules=rules,
                gate_columns=gate_columns,
                dictionary=dictionary,
                features=features,
                strength=strength,
                control_directions=_written(dictionary.directions(features), edits) if is_control else None,
            )
            part.full_edits.append((edit_indices, full))
    columns.add_reads(parts, device)
    return EditLayout(parts, columns.number)


def _written(directions: Tensor, edits: Sequence[ResolvedEdit]) -> Tensor:
    """Return the directions that the edits write; a control writes another direction than it reads."""
    seeds = [edit.control_seed for edit in edits]
    if all(seed is None for seed in seeds):
        return directions
    pairs = zip(directions, seeds, strict=True)
    return torch.stack([direction if seed is None else rotated(direction, seed) for direction, seed in pairs])


def _fully_encoded(edit: ResolvedEdit) -> str | None:
    """Return the id of the dictionary whose whole encoding the edit needs; None if one column is enough."""
    if edit.dictionary is None or edit.dictionary.is_pointwise or edit.mode == "remove":
        return None
    return edit.dictionary.id


class _Columns:
    """Assigns a column of the pass to each activation that is needed."""

    def __init__(self) -> None:
        self.number = _FIRST_COLUMN
        self._features: dict[str, dict[int, int]] = {}
        """Column of each feature, by dictionary."""
        self._dictionaries: dict[str, Dictionary] = {}
        self._units: dict[str, list[tuple[int, Tensor]]] = {}
        """Columns and unit vectors of projections, by hook point."""
        self._kept: set[str] = set()

    def of_gate(self, edit: ResolvedEdit) -> int:
        if edit.gate is None:
            return _ZERO_COLUMN
        return self._of_feature(edit.gate.dictionary, edit.gate.feature)

    def of_edit(self, edit: ResolvedEdit, direction: Tensor) -> int:
        if edit.mode == "remove":
            self._units.setdefault(edit.hook_name, []).append((self.number, direction))
            self.number += 1
            return self.number - 1
        if edit.dictionary is None or edit.feature is None:
            return _ZERO_COLUMN
        return self._of_feature(edit.dictionary, edit.feature)

    def of_full_edits(self, edits: Sequence[ResolvedEdit]) -> Dictionary:
        """Keep the whole encoding; return its dictionary."""
        [dictionary] = {edit.dictionary.id: edit.dictionary for edit in edits if edit.dictionary is not None}.values()
        self._features.setdefault(dictionary.id, {})
        self._dictionaries[dictionary.id] = dictionary
        self._kept.add(dictionary.id)
        return dictionary

    def add_reads(self, parts: dict[str, HookPart], device: torch.device) -> None:
        """Add the reads to the parts of their hook points."""
        reads: dict[str, list[Reads]] = {}
        for dictionary_id, columns in self._features.items():
            dictionary = self._dictionaries[dictionary_id]
            hook_name, features = dictionary.read_hook_name, list(columns)
            if dictionary.is_pointwise:
                feature_columns = dictionary.columns(features)
                reads.setdefault(hook_name, []).append(feature_reads(feature_columns, list(columns.values())))
                continue
            full = FullRead(
                dictionary=dictionary,
                features=torch.tensor(features, dtype=torch.long, device=device),
                columns=torch.tensor(list(columns.values()), dtype=torch.long, device=device),
                is_kept=dictionary_id in self._kept,
            )
            parts.setdefault(hook_name, HookPart()).full_reads.append(full)
        for hook_name, projections in self._units.items():
            units = torch.stack([unit for _, unit in projections])
            reads.setdefault(hook_name, []).append(projection_reads(units, [column for column, _ in projections]))
        for hook_name, groups in reads.items():
            parts.setdefault(hook_name, HookPart()).reads = _joined(groups)

    def _of_feature(self, dictionary: Dictionary, feature: int) -> int:
        self._dictionaries[dictionary.id] = dictionary
        columns = self._features.setdefault(dictionary.id, {})
        if feature not in columns:
            columns[feature] = self.number
            self.number += 1
        return columns[feature]


def _joined(groups: Sequence[Reads]) -> Reads:
    names = [field.name for field in fields(Reads)]
    return Reads(**{name: torch.cat([getattr(reads, name) for reads in groups], dim=1) for name in names})

"""Where the edits of one sequence read and where they write: what has to be done at each hook point.

An activation is read at the hook point of its dictionary, once for all gates and edits that go by it, and kept in a
column of the pass. Edits take it from there, at the same hook point or a later one: gates may lie earlier, and
transcoders read before they write.
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

_NOTHING = 1
"""A column that is always 0, for what goes by no activation. Before it lies one for the padding of shorter rows."""
_FIRST = 2


@dataclass(frozen=True, slots=True)
class FullRead:
    """Features that are read by encoding everything."""

    dictionary: Dictionary
    features: Tensor
    columns: Tensor
    is_kept: bool
    """Whether edits need the encoding itself."""


@dataclass(slots=True)
class HookPart:
    """What is to do at one hook point: first the reads, then the edits."""

    reads: Reads | None = None
    full_reads: list[FullRead] = field(default_factory=list)
    edits: Edits | None = None
    places: Tensor | None = None
    """Of `edits`, among all edits of the sequence."""
    full_edits: list[tuple[Tensor, FullEdits]] = field(default_factory=list)
    """With their places."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is to do at each hook point, and how many columns that takes."""

    parts: dict[str, HookPart]
    num_columns: int


def in_fixed_order(edits: Sequence[ResolvedEdit]) -> list[tuple[int, ResolvedEdit]]:
    """Return edits with their places, sorted by what they are.

    The order in which a client wrote them must not decide how sums are rounded: requests share prompts all the same.
    """
    keys = [json.dumps(edit.identity(), sort_keys=True) for edit in edits]
    return [(place, edits[place]) for place in sorted(range(len(edits)), key=keys.__getitem__)]


def lay_out(
    placed: Sequence[tuple[int, ResolvedEdit]],
    strength: float,
    median_norms: Mapping[str, float],
    device: torch.device,
) -> Layout:
    """Gather what these edits of one sequence take; `median_norms` gives each hook point's, for vectors."""
    columns = _Columns()
    kinds: dict[tuple[str, str | None], list[tuple[int, ResolvedEdit]]] = {}
    for place, edit in placed:
        kinds.setdefault((edit.hook_name, _encodes_fully(edit)), []).append((place, edit))
    parts: dict[str, HookPart] = {}
    for (hook_name, dictionary_id), some in kinds.items():
        part = parts.setdefault(hook_name, HookPart())
        edits = [edit for _, edit in some]
        places = torch.tensor([place for place, _ in some], device=device)
        rules = rules_of(edits, median_norms, device)
        gate_columns = torch.tensor([[columns.of_gate(edit) for edit in edits]], device=device)
        if dictionary_id is None:
            directions = torch.stack([written_direction(edit, device) for edit in edits])
            part.places = places
            part.edits = Edits(
                rules=rules,
                act_columns=torch.tensor(
                    [[columns.of_edit(*one) for one in zip(edits, directions, strict=True)]], device=device
                ),
                gate_columns=gate_columns,
                direction=(_turned(directions, edits) * strength)[None],
                direction_norm=(directions.norm(dim=-1) * abs(strength))[None],
            )
        else:
            dictionary = columns.of_full_edits(edits)
            features = torch.tensor([edit.feature for edit in edits], device=device)
            written = None
            if edits[0].control_seed is not None:
                written = _turned(dictionary.directions(features), edits)
            part.full_edits.append((places, FullEdits(rules, gate_columns, dictionary, features, strength, written)))
    columns.add_reads(parts, device)
    return Layout(parts, columns.number)


def _turned(directions: Tensor, edits: Sequence[ResolvedEdit]) -> Tensor:
    """Return what the edits write: a control, another direction than the one it reads."""
    seeds = [edit.control_seed for edit in edits]
    if all(seed is None for seed in seeds):
        return directions
    return torch.stack(
        [one if seed is None else rotated(one, seed) for one, seed in zip(directions, seeds, strict=True)]
    )


def _encodes_fully(edit: ResolvedEdit) -> str | None:
    """Return the dictionary whose whole encoding an edit changes, None where a direction does."""
    if edit.dictionary is None or edit.dictionary.is_pointwise or edit.mode == "remove":
        return None
    return edit.dictionary.id


class _Columns:
    """Gives each activation that is needed a column of the pass."""

    def __init__(self) -> None:
        self.number = _FIRST
        self._features: dict[str, dict[int, int]] = {}
        """The column of each feature, by dictionary."""
        self._dictionaries: dict[str, Dictionary] = {}
        self._units: dict[str, list[tuple[int, Tensor]]] = {}
        """Unit vectors on which the stream is projected, by hook point."""
        self._kept: set[str] = set()

    def of_gate(self, edit: ResolvedEdit) -> int:
        if edit.gate is None:
            return _NOTHING
        return self._of_feature(edit.gate.dictionary, edit.gate.feature)

    def of_edit(self, edit: ResolvedEdit, direction: Tensor) -> int:
        if edit.mode == "remove":
            self._units.setdefault(edit.hook_name, []).append((self.number, direction))
            self.number += 1
            return self.number - 1
        if edit.dictionary is None or edit.feature is None:
            return _NOTHING
        return self._of_feature(edit.dictionary, edit.feature)

    def of_full_edits(self, edits: Sequence[ResolvedEdit]) -> Dictionary:
        """Have the whole encoding kept; return its dictionary."""
        [dictionary] = {edit.dictionary.id: edit.dictionary for edit in edits if edit.dictionary is not None}.values()
        self._features.setdefault(dictionary.id, {})
        self._dictionaries[dictionary.id] = dictionary
        self._kept.add(dictionary.id)
        return dictionary

    def add_reads(self, parts: dict[str, HookPart], device: torch.device) -> None:
        """Note at each hook point what is read there."""
        reads: dict[str, list[Reads]] = {}
        for dictionary_id, columns in self._features.items():
            dictionary = self._dictionaries[dictionary_id]
            hook_name, features = dictionary.read_hook_name, list(columns)
            if dictionary.is_pointwise:
                found = feature_reads(dictionary.columns(features), list(columns.values()))
                reads.setdefault(hook_name, []).append(found)
                continue
            full = FullRead(
                dictionary=dictionary,
                features=torch.tensor(features, dtype=torch.long, device=device),
                columns=torch.tensor(list(columns.values()), dtype=torch.long, device=device),
                is_kept=dictionary_id in self._kept,
            )
            parts.setdefault(hook_name, HookPart()).full_reads.append(full)
        for hook_name, some in self._units.items():
            units = torch.stack([unit for _, unit in some])
            reads.setdefault(hook_name, []).append(projection_reads(units, [column for column, _ in some]))
        for hook_name, several in reads.items():
            parts.setdefault(hook_name, HookPart()).reads = _joined(several)

    def _of_feature(self, dictionary: Dictionary, feature: int) -> int:
        self._dictionaries[dictionary.id] = dictionary
        columns = self._features.setdefault(dictionary.id, {})
        if feature not in columns:
            columns[feature] = self.number
            self.number += 1
        return columns[feature]


def _joined(several: Sequence[Reads]) -> Reads:
    names = [one.name for one in fields(Reads)]
    return Reads(**{name: torch.cat([getattr(reads, name) for reads in several], dim=1) for name in names})

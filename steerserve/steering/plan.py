"""A batch's edits as tensors: built for each sequence when it is admitted, stacked when the rows of a batch change.

Engine thread only. Steering is data beside the model, never state on it: `hooks` says what to call at which hook
point during one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerserve.steering.apply import (
    NUM_SUMS,
    Change,
    Coefficients,
    PointwiseEdits,
    apply_full,
    apply_pointwise,
    stack_rows,
)
from steerserve.steering.positions import TokenPlace, in_window_of, may_edit_of, position_masks
from steerserve.steering.receipt import Receipt, make_receipt
from steerserve.steering.tensors import edit_coefficients, pointwise_edits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.resolve import ResolvedEdit, ResolvedSteering

    PromptSums = dict[str, Tensor]
    HookFns = dict[str, Callable[[Tensor], Tensor | None]]


@dataclass(slots=True)
class EditGroup:
    """Edits of one sequence at one hook point that are computed together."""

    places: list[int]
    """Among the request's effective edits."""
    edits: list[ResolvedEdit]
    sums: Tensor
    """`[edits, sums]`, added up over the tokens so far."""
    pointwise: PointwiseEdits | None = None
    coefficients: Coefficients | None = None
    dictionary: Dictionary | None = None
    features: Tensor | None = None
    strength: float = 1.0


class SequenceEdits:
    """One sequence's edits, and what they came to so far."""

    def __init__(self, steering: ResolvedSteering, median_norms: Mapping[str, float], device: torch.device) -> None:
        """Gather what the edits need; `median_norms` gives each hook point's, for vectors."""
        self.steering = steering
        self._effective = [edit for _, edit in steering.effective_edits]
        self.touches_prompt = any(edit.touches_prompt for edit in self._effective)
        self.groups: dict[str, list[EditGroup]] = {}
        by_kind: dict[tuple[str, str | None], list[int]] = {}
        for place, edit in enumerate(self._effective):
            needs_all = edit.dictionary is not None and not edit.dictionary.is_pointwise and edit.mode != "remove"
            kind = edit.dictionary.id if edit.dictionary is not None and needs_all else None
            by_kind.setdefault((edit.hook_name, kind), []).append(place)
        for (hook_name, kind), places in by_kind.items():
            edits = [self._effective[place] for place in places]
            sums = torch.zeros(len(places), NUM_SUMS, dtype=torch.float64, device=device)
            group = EditGroup(places, edits, sums, strength=steering.strength)
            how = edit_coefficients(edits, median_norms, device)
            if kind is None:
                group.pointwise = pointwise_edits(edits, how, steering.strength, device)
            else:
                group.dictionary = edits[0].dictionary
                group.features = torch.tensor([edit.feature for edit in edits], device=device)
                group.coefficients = how
            self.groups.setdefault(hook_name, []).append(group)

    def receipt(self) -> Receipt:
        """Return what was done so far."""
        sums: list[Sequence[float]] = [()] * len(self._effective)
        for groups in self.groups.values():
            for group in groups:
                for place, row in zip(group.places, group.sums.tolist(), strict=True):
                    sums[place] = row
        return make_receipt(self.steering, sums)

    def prompt_sums(self) -> PromptSums:
        """Return a copy of what was counted so far, by edit, for sequences that will share the computed prompt."""
        return {
            str(edit.identity()): sums.clone()
            for groups in self.groups.values()
            for group in groups
            for edit, sums in zip(group.edits, group.sums, strict=True)
            if edit.touches_prompt
        }

    def restore(self, shared: PromptSums) -> None:
        """Count what was done to a prompt that another sequence, with the same edits of it, computed."""
        for groups in self.groups.values():
            for group in groups:
                for place, edit in enumerate(group.edits):
                    if edit.touches_prompt:
                        group.sums[place] = shared[str(edit.identity())]

    def prompt_hooks(self, tokens: Sequence[TokenPlace]) -> HookFns:
        """Return what to call while these prompt tokens of one row are computed."""
        if not self.touches_prompt:
            return {}
        return {name: _prompt_hook(groups, tokens) for name, groups in self.groups.items()}


class BatchPlan:
    """The edits of all rows of a decode batch; valid while the rows stay the same."""

    def __init__(self, rows: Sequence[SequenceEdits | None]) -> None:
        """Stack the edits of each row, None for a row without."""
        self._hooks: dict[str, _HookPlan] = {}
        for row, sequence in enumerate(rows):
            for hook_name, groups in (sequence.groups if sequence is not None else {}).items():
                self._hooks.setdefault(hook_name, _HookPlan()).add(row, groups)
        for plan in self._hooks.values():
            plan.stack()

    def hooks(self, tokens: Sequence[TokenPlace]) -> HookFns:
        """Return what to call during a step in which each row has this token."""
        return {name: plan.hook(tokens) for name, plan in self._hooks.items()}

    def flush(self) -> None:
        """Add what the plan has counted to its sequences."""
        for plan in self._hooks.values():
            plan.flush()


class _HookPlan:
    """All rows' edits at one hook point."""

    def __init__(self) -> None:
        self._pointwise: list[tuple[int, EditGroup]] = []
        self._full: list[tuple[int, EditGroup]] = []
        self._stacked: PointwiseEdits | None = None
        self._rows: Tensor | None = None
        self._sums: Tensor | None = None
        self._masks: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def add(self, row: int, groups: Sequence[EditGroup]) -> None:
        for group in groups:
            (self._full if group.pointwise is None else self._pointwise).append((row, group))

    def stack(self) -> None:
        if not self._pointwise:
            return
        device = self._pointwise[0][1].sums.device
        self._stacked = stack_rows([group.pointwise for _, group in self._pointwise])
        self._rows = torch.tensor([row for row, _ in self._pointwise], device=device)
        shape = (*self._stacked.gain.shape, NUM_SUMS)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)

    def hook(self, tokens: Sequence[TokenPlace]) -> Callable[[Tensor], Tensor]:
        masks = self._pointwise_masks(tokens)
        stacked, rows, counted = self._stacked, self._rows, self._sums

        def edit(resid: Tensor) -> Tensor:
            x = resid[:, 0]
            edited = x.float()  # all changes of a row are summed in float32 and rounded once
            if edited is x:
                edited = x.clone()
            if stacked is not None and rows is not None and counted is not None and masks is not None:
                mine = edited.index_select(0, rows)
                change = apply_pointwise(mine, stacked, *masks)
                counted.add_(change.sums)
                edited.index_copy_(0, rows, mine + change.dx)
            for row, group in self._full:
                change = _full_change(group, x[row : row + 1].float(), [tokens[row]])
                edited[row] += change.dx[0]
            return edited.to(x.dtype)[:, None]

        return edit

    def flush(self) -> None:
        if self._sums is None:
            return
        for (_, group), sums in zip(self._pointwise, self._sums, strict=True):
            group.sums += sums[: len(group.places)]
        self._sums.zero_()

    def _pointwise_masks(self, tokens: Sequence[TokenPlace]) -> tuple[Tensor, Tensor] | None:
        """Return the masks of this step; they seldom change from one to the next, so the last ones are kept."""
        if self._stacked is None or self._rows is None:
            return None
        most = self._stacked.gain.shape[1]
        in_window, may_edit = [], []
        for row, group in self._pointwise:
            padding = [False] * (most - len(group.edits))
            in_window.append([in_window_of(edit, tokens[row]) for edit in group.edits] + padding)
            may_edit.append([may_edit_of(edit, tokens[row]) for edit in group.edits] + padding)
        key = (in_window, may_edit)
        if self._masks is None or self._masks[0] != key:
            device = self._rows.device
            self._masks = (key, (torch.tensor(in_window, device=device), torch.tensor(may_edit, device=device)))
        return self._masks[1]


def _prompt_hook(groups: Sequence[EditGroup], tokens: Sequence[TokenPlace]) -> Callable[[Tensor], Tensor]:
    def edit(resid: Tensor) -> Tensor:
        x = resid[0].float()
        edited = x
        for group in groups:
            if group.pointwise is None:
                change = _full_change(group, x, tokens)
            else:
                change = apply_pointwise(x, group.pointwise, *position_masks(group.edits, tokens, x.device))
                group.sums += change.sums.sum(0)
            edited = edited + change.dx
        return edited.to(resid.dtype)[None]

    return edit


def _full_change(group: EditGroup, x: Tensor, tokens: Sequence[TokenPlace]) -> Change:
    if group.dictionary is None or group.features is None or group.coefficients is None:
        message = "a group of full edits always has its dictionary, features and coefficients"
        raise RuntimeError(message)
    masks = position_masks(group.edits, tokens, x.device)
    change = apply_full(x, group.dictionary, group.features, group.coefficients, group.strength, masks)
    group.sums += change.sums.sum(0)
    return change

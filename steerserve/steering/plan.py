"""A batch's edits as tensors: built for each sequence when it is admitted, stacked when the rows of a batch change.

Engine thread only. Steering is data beside the model, never state on it: `hooks` says what to call at which hook
point during one forward pass.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerserve.steering.apply import NUM_SUMS
from steerserve.steering.layout import in_fixed_order, lay_out
from steerserve.steering.receipt import Receipt, make_receipt
from steerserve.steering.site import Changes, Member, Pass, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.resolved import ResolvedSteering
    from steerserve.steering.site import TokenRole

    PromptSums = dict[str, Tensor]
    HookFns = dict[str, Callable[[Tensor], Tensor | None]]


class SequenceEdits:
    """One sequence's edits, and what they came to so far."""

    def __init__(self, steering: ResolvedSteering, median_norms: Mapping[str, float], device: torch.device) -> None:
        """Gather what the edits need; `median_norms` gives each hook point's, for vectors."""
        self.steering = steering
        self._effective = [edit for _, edit in steering.effective_edits]
        self.sums = torch.zeros(len(self._effective), NUM_SUMS, dtype=torch.float64, device=device)
        """Of each effective edit, added up over the tokens so far."""
        placed = in_fixed_order(self._effective)
        of_prompt = [(place, edit) for place, edit in placed if edit.touches_prompt]
        of_generated = [(place, edit) for place, edit in placed if edit.touches_generated]
        self.touches_prompt, self.touches_generated = bool(of_prompt), bool(of_generated)
        # Two, so that what is done to a prompt, bit by bit, depends on nothing but the edits of the prompt.
        self._prompt = lay_out(of_prompt, steering.strength, median_norms, device)
        self.generated = (
            self._prompt
            if of_generated == of_prompt
            else lay_out(of_generated, steering.strength, median_norms, device)
        )
        self._sites = {name: Site([Member(None, part, self.sums)]) for name, part in self._prompt.parts.items()}

    def receipt(self) -> Receipt:
        """Return what was done so far."""
        return make_receipt(self.steering, self.sums.tolist())

    def prompt_sums(self) -> PromptSums:
        """Return a copy of what was counted so far, by edit, for sequences that will share the computed prompt."""
        return {
            str(edit.identity()): sums.clone()
            for edit, sums in zip(self._effective, self.sums, strict=True)
            if edit.touches_prompt
        }

    def restore(self, shared: PromptSums) -> None:
        """Count what was done to a prompt that another sequence, with the same edits of it, computed."""
        for place, edit in enumerate(self._effective):
            if edit.touches_prompt:
                self.sums[place] = shared[str(edit.identity())]

    def prompt_hooks(self, tokens: Sequence[TokenRole], changes: Changes | None = None) -> HookFns:
        """Return what to call while these prompt tokens of one row are computed; `changes` notes what edits do."""
        return _hook_fns(self._sites, tokens, self._prompt.num_columns, self.sums.device, changes)

    def generated_hooks(self, tokens: Sequence[TokenRole]) -> HookFns:
        """Return what to call while these generated tokens of one row are computed again, all together."""
        sites = {name: Site([Member(None, part, self.sums)]) for name, part in self.generated.parts.items()}
        return _hook_fns(sites, tokens, self.generated.num_columns, self.sums.device)

    def edited_acts(
        self, dictionary: Dictionary, acts: Sequence[float], deltas: Sequence[float]
    ) -> tuple[tuple[int, float], ...]:
        """Return the features of a dictionary that edits changed at a token, with their activations after that.

        Edits that write along a feature's direction whatever its activation (`remove`, controls) change none.

        Args:
            dictionary: The one that is watched.
            acts: Of each effective edit, the activation that it went by.
            deltas: Of each effective edit, what it added to that.
        """
        before: dict[int, float] = {}
        added: dict[int, float] = {}
        for edit, act, delta in zip(self._effective, acts, deltas, strict=True):
            if delta == 0 or edit.feature is None or edit.mode == "remove" or edit.control_seed is not None:
                continue
            if edit.dictionary is not None and edit.dictionary.contents == dictionary.contents:
                before[edit.feature] = act
                added[edit.feature] = added.get(edit.feature, 0.0) + delta
        strength = self.steering.strength
        return tuple((feature, act + strength * added[feature]) for feature, act in before.items())


class BatchPlan:
    """The edits of all rows of a decode batch; valid while the rows stay the same."""

    def __init__(self, rows: Sequence[SequenceEdits | None]) -> None:
        """Stack the edits of each row, None for a row without."""
        members: dict[str, list[Member]] = {}
        edited = [(row, sequence) for row, sequence in enumerate(rows) if sequence is not None]
        for row, sequence in edited:
            for hook_name, part in sequence.generated.parts.items():
                members.setdefault(hook_name, []).append(Member(row, part, sequence.sums))
        self._sites = {hook_name: Site(some) for hook_name, some in members.items()}
        self._num_columns = max((sequence.generated.num_columns for _, sequence in edited), default=0)
        self._device = edited[0][1].sums.device if edited else torch.device("cpu")

    def hooks(self, tokens: Sequence[TokenRole], changes: Changes | None = None) -> HookFns:
        """Return what to call during a step in which each row has this token; `changes` notes what edits do."""
        return _hook_fns(self._sites, tokens, self._num_columns, self._device, changes)

    def flush(self) -> None:
        """Add what the plan has counted to its sequences."""
        for site in self._sites.values():
            site.flush()


def _hook_fns(
    sites: Mapping[str, Site],
    tokens: Sequence[TokenRole],
    num_columns: int,
    device: torch.device,
    changes: Changes | None = None,
) -> HookFns:
    if not sites:
        return {}
    now = Pass(tokens, num_columns, device, changes)
    return {hook_name: functools.partial(site.run, now) for hook_name, site in sites.items()}

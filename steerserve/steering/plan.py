"""A batch's edits as tensors: built for each sequence when it is admitted, stacked when the rows of a batch change.

Engine thread only. Steering is data beside the model, never state on it: `hooks` returns the functions to call at each
hook point during one forward pass.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerserve.steering.apply import SUM_NAMES
from steerserve.steering.layout import in_fixed_order, lay_out
from steerserve.steering.receipt import SteeringReceipt, make_receipt
from steerserve.steering.site import Changes, Pass, Site, SiteMember

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.resolved import ResolvedSteering
    from steerserve.steering.site import TokenRole

    PromptSums = dict[str, Tensor]
    HookFns = dict[str, Callable[[Tensor], Tensor | None]]


class SequenceEdits:
    """One sequence's edits, and the sums of what they did so far."""

    def __init__(self, steering: ResolvedSteering, median_norms: Mapping[str, float], device: torch.device) -> None:
        """Build the edits' tensors; `median_norms` of the hook points tell sinks apart for edits of vectors."""
        self.steering = steering
        self._effective = [edit for _, edit in steering.effective_edits]
        self.sums = torch.zeros(len(self._effective), len(SUM_NAMES), dtype=torch.float64, device=device)
        """Sums of each effective edit over the tokens so far, in the order of `SUM_NAMES`."""
        indexed = in_fixed_order(self._effective)
        of_prompt = [(index, edit) for index, edit in indexed if edit.touches_prompt]
        of_generated = [(index, edit) for index, edit in indexed if edit.touches_generated]
        self.touches_prompt, self.touches_generated = bool(of_prompt), bool(of_generated)
        # Two layouts, so that the bits of an edited prompt depend only on the edits that touch prompts.
        self._prompt = lay_out(of_prompt, steering.strength, median_norms, device)
        self.generated = (
            self._prompt
            if of_generated == of_prompt
            else lay_out(of_generated, steering.strength, median_norms, device)
        )
        self._sites = {name: Site([SiteMember(None, part, self.sums)]) for name, part in self._prompt.parts.items()}

    def receipt(self) -> SteeringReceipt:
        """Return the receipt of what was done so far."""
        return make_receipt(self.steering, self.sums.tolist())

    def prompt_sums(self) -> PromptSums:
        """Return a copy of the sums so far, by edit, for sequences that will share the computed prompt."""
        return {
            str(edit.identity()): sums.clone()
            for edit, sums in zip(self._effective, self.sums, strict=True)
            if edit.touches_prompt
        }

    def restore(self, shared: PromptSums) -> None:
        """Take over the sums of a shared prompt from the sequence, with the same prompt edits, that computed it."""
        for index, edit in enumerate(self._effective):
            if edit.touches_prompt:
                self.sums[index] = shared[str(edit.identity())]

    def prompt_hooks(self, roles: Sequence[TokenRole], changes: Changes | None = None) -> HookFns:
        """Return the functions to call while prompt tokens of one row are computed; `changes` takes what edits do."""
        return _hook_fns(self._sites, roles, self._prompt.num_columns, self.sums.device, changes)

    def generated_hooks(self, roles: Sequence[TokenRole]) -> HookFns:
        """Return the functions to call while generated tokens of one row are computed again, all at once."""
        sites = {name: Site([SiteMember(None, part, self.sums)]) for name, part in self.generated.parts.items()}
        return _hook_fns(sites, roles, self.generated.num_columns, self.sums.device)

    def edited_acts(
        self, dictionary: Dictionary, acts: Sequence[float], deltas: Sequence[float]
    ) -> tuple[tuple[int, float], ...]:
        """Return the features of a dictionary that edits changed at a token, with the activations after the edits.

        The mode `remove` and controls change no activation of a feature.

        Args:
            dictionary: The watched dictionary.
            acts: The activation that each effective edit read.
            deltas: The number that each effective edit added to its activation.
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
    """The edits of all rows of a decode batch, valid while the rows stay the same."""

    def __init__(self, rows: Sequence[SequenceEdits | None]) -> None:
        """Stack the edits of the rows; None is a row without edits."""
        members: dict[str, list[SiteMember]] = {}
        edited = [(row, sequence) for row, sequence in enumerate(rows) if sequence is not None]
        for row, sequence in edited:
            for hook_name, part in sequence.generated.parts.items():
                members.setdefault(hook_name, []).append(SiteMember(row, part, sequence.sums))
        self._sites = {hook_name: Site(group) for hook_name, group in members.items()}
        self._num_columns = max((sequence.generated.num_columns for _, sequence in edited), default=0)
        self._device = edited[0][1].sums.device if edited else torch.device("cpu")

    def hooks(self, roles: Sequence[TokenRole], changes: Changes | None = None) -> HookFns:
        """Return the functions to call during a step over the rows' tokens; `changes` takes what edits do."""
        return _hook_fns(self._sites, roles, self._num_columns, self._device, changes)

    def flush(self) -> None:
        """Add the plan's counts to its sequences."""
        for site in self._sites.values():
            site.flush()


def _hook_fns(
    sites: Mapping[str, Site],
    roles: Sequence[TokenRole],
    num_columns: int,
    device: torch.device,
    changes: Changes | None = None,
) -> HookFns:
    if not sites:
        return {}
    now = Pass(roles, num_columns, device, changes)
    return {hook_name: functools.partial(site.run, now) for hook_name, site in sites.items()}

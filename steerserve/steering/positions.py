"""Which tokens an edit means: prompt or generated, special or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from steerserve.steering.resolve import ResolvedEdit


class TokenPlace(NamedTuple):
    """What the position rules of an edit ask of a token."""

    is_special: bool
    generated_index: int | None
    """None for a prompt token."""


def position_masks(
    edits: Sequence[ResolvedEdit], tokens: Sequence[TokenPlace], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return, `[tokens, edits]`, which edits mean which token, and which may touch it."""
    in_window = torch.tensor([[in_window_of(edit, token) for edit in edits] for token in tokens], device=device)
    may_edit = torch.tensor([[may_edit_of(edit, token) for edit in edits] for token in tokens], device=device)
    return in_window, may_edit


def in_window_of(edit: ResolvedEdit, token: TokenPlace) -> bool:
    """Tell whether the edit means this token."""
    if token.generated_index is None:
        return edit.positions != "generated"
    if edit.positions == "prompt":
        return False
    return edit.start <= token.generated_index and (edit.stop is None or token.generated_index < edit.stop)


def may_edit_of(edit: ResolvedEdit, token: TokenPlace) -> bool:
    """Tell whether the edit may touch this token: special ones are left alone unless asked."""
    return edit.special_tokens or not token.is_special

"""Where a token stands, as far as the rules of edits ask."""

from __future__ import annotations

from typing import NamedTuple


class TokenPlace(NamedTuple):
    """What the position rules of an edit ask of a token."""

    is_special: bool
    generated_index: int | None
    """None for a prompt token."""

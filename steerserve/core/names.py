"""Names that clients send: cut before they are matched or repeated, since one may fill a whole body."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SHOWN = 100
_CUT = "..."


def short_name(name: str, limit: int = MAX_SHOWN) -> str:
    """Return `name` as messages and `param` repeat it: at most `limit` characters."""
    return name if len(name) <= limit else name[: limit - len(_CUT)] + _CUT


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return which of `known` was probably meant; None where none is near.

    Matching takes time that grows with the square of the length, and the event loop waits for it.
    """
    near = difflib.get_close_matches(name[:MAX_SHOWN], known, n=1)
    return near[0] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the sentence that offers the nearest name, after a space; nothing where none is near."""
    near = nearest_name(name, known)
    return f" Did you mean {near!r}?" if near is not None else ""

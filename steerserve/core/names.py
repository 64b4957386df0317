"""Names that clients send: cut before they are compared or repeated, since one may fill a whole request body."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SHOWN = 100
_CUT = "..."


def short_name(name: str, limit: int = MAX_SHOWN) -> str:
    """Return the first characters of `name` as messages and `param` show it, at most `limit`."""
    return name if len(name) <= limit else name[: limit - len(_CUT)] + _CUT


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Return the entry of `names` that `name` probably means; None if none is similar.

    Only the first characters are compared: the time grows with the square of the length, and the event loop waits.
    """
    near = difflib.get_close_matches(name[:MAX_SHOWN], names, n=1)
    return near[0] if near else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a space and the question that offers the nearest name; empty if none is similar."""
    near = nearest_name(name, names)
    return f" Did you mean {near!r}?" if near is not None else ""

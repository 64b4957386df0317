"""The characters that a label may have, whether it comes from a file, a model or a person."""

from __future__ import annotations

import math
import unicodedata

MAX_LABEL_CHARS = 200
"""Largest length of a label that a person writes."""
_JOINERS = "\u200c\u200d"
"""Zero-width characters that are part of the spelling in Persian, the scripts of India and many emoji."""


def clean_label(text: str, max_chars: int) -> str:
    """Return a label on one line, without characters that cannot be shown or stored; empty if nothing is left.

    Control characters, which a terminal would obey, and characters without a glyph become spaces. Other format
    characters, and lone surrogates, which no file can hold, are removed.
    """
    kept = "".join(map(_shown, text))
    return _trimmed(" ".join(kept.split())[:max_chars])


def is_one_line(text: str) -> bool:
    """Return whether `clean_label` would change nothing in a label but the spaces around it."""
    trimmed = text.strip()
    return bool(_trimmed(trimmed)) and all(_shown(char) == char for char in trimmed)


def finite_number(value: object) -> float:
    """Return a number from JSON as a float that can be stored.

    Raises:
        ValueError: the value is not a number, not finite, or too large for a float.
    """
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        message = "not a finite number"
        raise ValueError(message)
    return number


def _shown(char: str) -> str:
    if char.isprintable() or char in _JOINERS:
        return char
    return "" if unicodedata.category(char) in {"Cf", "Cs"} else " "


def _trimmed(text: str) -> str:
    return text.strip(" " + _JOINERS)

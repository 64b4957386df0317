"""What a label may consist of, wherever it comes from: files, models and people."""

from __future__ import annotations

import math
import unicodedata

MAX_LABEL_CHARS = 200
"""Of what a person writes."""
_JOINERS = "\u200c\u200d"
"""Zero-width, but spelling: Persian and the scripts of India need them, and so do many emoji."""


def clean_label(text: str, max_chars: int) -> str:
    """Return the words of a label on one line, without what cannot be shown or stored; empty where nothing is left.

    Control characters, which a terminal would obey, and whatever has no glyph part words; other format characters and
    lone surrogates, which no file can hold, are taken out.
    """
    kept = "".join(map(_shown, text))
    return _trimmed(" ".join(kept.split())[:max_chars])


def is_one_line(text: str) -> bool:
    """Tell whether a label has nothing that `clean_label` would take out, spaces around it apart."""
    trimmed = text.strip()
    return bool(_trimmed(trimmed)) and all(_shown(char) == char for char in trimmed)


def finite_number(value: object) -> float:
    """Return a number out of JSON as one that can be stored.

    Raises:
        ValueError: it is none, not finite, or larger than any.
    """
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        message = "no finite number"
        raise ValueError(message)
    return found


def _shown(char: str) -> str:
    if char.isprintable() or char in _JOINERS:
        return char
    return "" if unicodedata.category(char) in {"Cf", "Cs"} else " "


def _trimmed(text: str) -> str:
    return text.strip(" " + _JOINERS)

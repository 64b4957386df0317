"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def give_back_freed() -> None:
    """Return memory that was freed to the system.

    glibc keeps what a thread has freed for that thread's next need. Each dictionary is loaded in whatever worker
    thread is free, so that without this every such thread keeps a dictionary's worth.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    """Return glibc's malloc_trim, or what does nothing where there is another C library."""
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: None
    return trim

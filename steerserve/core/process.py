"""What the package sets in its own process: how CPU threads wait for each other, and freed memory given back."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

SPIN_COUNT = "10000"
"""Default of GOMP_SPINCOUNT.

OpenMP threads spin while they wait. If another process takes one of their cores, the others spin in vain. Measured on
two cores, a forward pass of 64 tokens beside a busy process, and a decode step of 16 rows alone:

    GOMP_SPINCOUNT          1,000    10,000    30,000    100,000    not set
    forward pass, shared    0.20 s   0.36 s    0.73 s               5.3 s
    decode step, alone      110 ms   96 ms               87 ms
"""


def limit_spinning(environ: MutableMapping[str, str]) -> None:
    """Set a short spin unless the user chose how to wait. Has an effect only before torch is imported."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environ.keys():
        environ["GOMP_SPINCOUNT"] = SPIN_COUNT


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

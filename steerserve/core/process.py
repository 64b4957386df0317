"""Settings of this process: how CPU threads wait for each other, and returning freed memory to the system."""

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
    """Make waiting CPU threads spin only briefly, unless the user chose otherwise. Call before torch is imported."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environ.keys():
        environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def return_freed_memory() -> None:
    """Return freed memory to the system.

    glibc keeps memory that a thread freed for the same thread. Each dictionary is loaded in some worker thread, so
    that without this call each of these threads would keep as much memory as a dictionary needs.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    """Return glibc's malloc_trim, or a function that does nothing if the C library is another."""
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: None
    return trim

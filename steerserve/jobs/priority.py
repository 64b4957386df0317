"""How a worker keeps out of the server's way: the last to get a core, the first to be killed for memory.

Measured on two cores, a step of two threads (as a server that decodes without a pause) beside a process of one thread
that multiplies matrices without a pause:

    the other process    none     as usual    nice 19    nice 19 and SCHED_IDLE
    a step takes         91 ms    155 ms      91 ms      92 ms

So SCHED_IDLE, under which a job could starve beside any other program, would buy nothing.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from steerserve.core.keys import KEY_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

_NICENESS = 19
_OOM_SCORE = "800"
"""Of 1000: whoever must go when memory runs out, it is not the server."""
_SPIN_COUNT = "1000"


def worker_environment(environ: Mapping[str, str], *, threads: int, cache_dir: Path) -> dict[str, str]:
    """Return the environment of a worker, which is read before torch loads: few threads that wait without spinning.

    The keys of the server are left out.
    """
    kept = {name: value for name, value in environ.items() if name not in {*KEY_VARIABLES, "OMP_WAIT_POLICY"}}
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": _SPIN_COUNT,
        "STEERSERVE_CACHE_DIR": str(cache_dir),
    }


def step_aside() -> None:
    """Give this process, and the threads it will make, the least claim to a core."""
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")

"""Gives a worker the lowest priority: it is the last to get a core and the first to be killed if memory runs out.

Measured on two cores, for a step of two threads (a server that decodes without a pause) beside a process of one thread
that multiplies matrices without a pause:

    the other process    none     usual priority    nice 19    nice 19 and SCHED_IDLE
    duration of a step   91 ms    155 ms            91 ms      92 ms

SCHED_IDLE, under which a job could starve beside any other program, would therefore gain nothing.
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
"""Out of 1000: if memory runs out, the kernel kills the worker and not the server."""
_SPIN_COUNT = "1000"


def worker_environment(environ: Mapping[str, str], *, threads: int, cache_dir: Path) -> dict[str, str]:
    """Return the environment of a worker: few threads that wait without spinning, and no keys of the server.

    OpenMP reads these variables when torch is loaded, so they are set before the worker starts.
    """
    kept = {name: value for name, value in environ.items() if name not in {*KEY_VARIABLES, "OMP_WAIT_POLICY"}}
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": _SPIN_COUNT,
        "STEERSERVE_CACHE_DIR": str(cache_dir),
    }


def lower_priority() -> None:
    """Give this process, and the threads that it starts later, the lowest priority."""
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")

"""How torch's CPU threads wait for each other.

OpenMP threads spin while they wait. Where another process takes one of their cores for a moment, the others spin in
its place. Measured on two cores, a forward pass of 64 tokens beside a busy process, and a decode step of 16 rows alone:

    GOMP_SPINCOUNT          1,000    10,000    30,000    100,000    not set
    forward pass, shared    0.20 s   0.36 s    0.73 s               5.3 s
    decode step, alone      110 ms   96 ms               87 ms
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping

SPIN_COUNT = "10000"


def limit_spinning(environ: MutableMapping[str, str]) -> None:
    """Set a short spin unless the user chose how to wait. Has an effect only before torch is imported."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environ.keys():
        environ["GOMP_SPINCOUNT"] = SPIN_COUNT

"""The machine that a measurement runs on, and a fair comparison of steps on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that this process runs on."""

    cpu: str
    """Model name of the processor."""
    cores: int
    """Number of logical cores."""
    system: str
    """Name of the operating system."""
    python: str
    """Version of Python."""
    torch: str
    """Version of torch."""


def this_machine() -> Machine:
    """Describe this machine."""
    return Machine(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        system=platform.system(),
        python=platform.python_version(),
        torch=importlib.metadata.version("torch"),
    )


def load_average() -> float | None:
    """Return the machine's load average of the last minute; None if the system does not report it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def least_seconds(steps: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the least time of each step; they take turns, so that a busy moment affects all of them."""
    least = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            least[name] = min(least[name], time.perf_counter() - started)
    return least


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

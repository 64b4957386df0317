"""Steps that take turns, so that a busy moment hits all alike."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def least_seconds(steps: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the least time of each step."""
    least = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            least[name] = min(least[name], time.perf_counter() - started)
    return least

"""How a worker follows its run: reports become the job's progress, a stop request becomes `should_stop`."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_INTERVAL_S = 0.5
"""Shortest time between two reports of one stage; the first and the last are always reported."""


class RecordProgress(Protocol):
    """Stores a job's progress."""

    def __call__(self, progress: Mapping[str, Any], furthest: Mapping[str, int]) -> None:
        """Store `progress`, and in `furthest` the most that was ever done in each stage."""


class JobObserver:
    """The `Observer` of one job's run. The worker's main thread only, but for the event `stop`."""

    def __init__(
        self,
        record: RecordProgress,
        stop: threading.Event,
        furthest: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Report to `record`, and stop the run once `stop` is set.

        `furthest` is the most that earlier workers did in each stage.
        """
        self.has_begun = False
        """Whether the run has begun its first stage, so that it may have work to save."""
        self._record = record
        self._stop = stop
        self._furthest = dict(furthest)
        self._clock = clock

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[StageProgress]:
        """Follow one stage of the run."""
        self.has_begun = True
        progress = StageProgress(title, total, self._report, self._clock)
        yield progress
        progress.flush()

    def should_stop(self) -> bool:
        """Tell whether the run must save its work and stop."""
        return self._stop.is_set()

    def _report(self, progress: Mapping[str, Any]) -> None:
        title = progress["stage"]
        self._furthest[title] = max(self._furthest.get(title, 0), progress["done"])
        self._record(progress, self._furthest)


class StageProgress:
    """The `Progress` of one stage: adds rates, and reports no more often than a person can read."""

    def __init__(
        self, title: str, total: int, report: Callable[[Mapping[str, Any]], None], clock: Callable[[], float]
    ) -> None:
        """Begin a stage of `total` units, and report it."""
        self._title = title
        self._total = total
        self._report = report
        self._clock = clock
        self._first: tuple[float, int, float] | None = None
        """Time, units and tokens of the first update: a run that continues an earlier one begins in the middle."""
        self._latest: dict[str, Any] = {"stage": title, "done": 0, "total": total}
        self._is_reported = False
        self._reported_at = 0.0
        self.flush()

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        """Report how much is done, with figures for whoever follows the job."""
        now = self._clock()
        figures = flattened(facts or {})
        tokens = figures.get("tokens", 0)
        if self._first is None:
            self._first = (now, done, tokens)
        began, first_done, first_tokens = self._first
        elapsed, gained = now - began, done - first_done
        if "step" in figures:
            figures.setdefault("num_steps", self._total)
        if elapsed > 0 and gained > 0:
            figures["eta_s"] = round(elapsed / gained * max(self._total - done, 0), 1)
            if tokens > first_tokens:
                figures["tokens_per_s"] = round((tokens - first_tokens) / elapsed, 1)
        self._latest = {"stage": self._title, "done": done, "total": self._total, **figures}
        self._is_reported = False
        if now - self._reported_at >= _INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Report the latest update, unless it has been reported."""
        if not self._is_reported:
            self._is_reported = True
            self._reported_at = self._clock()
            self._report(self._latest)


def flattened(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return `facts` with those of a single dictionary at the top; those of several stay under `dictionaries`."""
    dictionaries = facts.get("dictionaries")
    if not isinstance(dictionaries, dict) or len(dictionaries) != 1:
        return dict(facts)
    (only,) = dictionaries.values()
    return {**{name: value for name, value in facts.items() if name != "dictionaries"}, **only}

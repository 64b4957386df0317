"""How a worker follows its run: what the run tells becomes the job's progress, a stop asked for becomes a question."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_INTERVAL_S = 0.5
"""Least time between two reports of one stage; the first and the last always come."""


class Record(Protocol):
    """Keeps the job's progress, and how far each stage ever came."""

    def __call__(self, progress: Mapping[str, Any], furthest: Mapping[str, int]) -> None:
        """Keep both."""


class JobObserver:
    """An `Observer` for training, of one job. The worker's main thread only, but for the event `stop`."""

    def __init__(
        self,
        record: Record,
        stop: threading.Event,
        furthest: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Report to `record`; ask to stop once `stop` is set. `furthest` is what earlier workers reached."""
        self.has_begun = False
        """Whether the run has reached its first stage, and so may have something to save."""
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
        """Tell whether the run is to save what it has and stop."""
        return self._stop.is_set()

    def _report(self, progress: Mapping[str, Any]) -> None:
        title = progress["stage"]
        self._furthest[title] = max(self._furthest.get(title, 0), progress["done"])
        self._record(progress, self._furthest)


class StageProgress:
    """A `Progress` for training: adds rates and passes on as much as anybody can read."""

    def __init__(
        self, title: str, total: int, report: Callable[[Mapping[str, Any]], None], clock: Callable[[], float]
    ) -> None:
        """Begin a stage of `total` units, and say so."""
        self._title = title
        self._total = total
        self._report = report
        self._clock = clock
        self._first: tuple[float, int, float] | None = None
        """When the first update came, and what was done by then: a run that goes on begins in the middle."""
        self._latest: dict[str, Any] = {"stage": title, "done": 0, "total": total}
        self._is_reported = False
        self._reported_at = 0.0
        self.flush()

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        """Say how much is done, with numbers worth seeing."""
        now = self._clock()
        told = flattened(facts or {})
        tokens = told.get("tokens", 0)
        if self._first is None:
            self._first = (now, done, tokens)
        began, first_done, first_tokens = self._first
        elapsed, gained = now - began, done - first_done
        if "step" in told:
            told.setdefault("num_steps", self._total)
        if elapsed > 0 and gained > 0:
            told["eta_s"] = round(elapsed / gained * max(self._total - done, 0), 1)
            if tokens > first_tokens:
                told["tokens_per_s"] = round((tokens - first_tokens) / elapsed, 1)
        self._latest = {"stage": self._title, "done": done, "total": self._total, **told}
        self._is_reported = False
        if now - self._reported_at >= _INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Report what was told last, unless it has been."""
        if not self._is_reported:
            self._is_reported = True
            self._reported_at = self._clock()
            self._report(self._latest)


def flattened(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts with those of the only dictionary at the top; of several they stay under `dictionaries`."""
    dictionaries = facts.get("dictionaries")
    if not isinstance(dictionaries, dict) or len(dictionaries) != 1:
        return dict(facts)
    (only,) = dictionaries.values()
    return {**{name: value for name, value in facts.items() if name != "dictionaries"}, **only}

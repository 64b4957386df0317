"""The observer that shows a run in a terminal, as bars, or as log lines if the output is not a terminal."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from steerserve.core.observer import Progress

_LINE_EVERY_S = 15.0
"""Seconds between two log lines of a stage."""
log = logging.getLogger(__name__)


class TerminalObserver:
    """Shows a run. Ctrl-C stops it with a checkpoint, a second Ctrl-C at once."""

    def __init__(self) -> None:
        """Show on stderr."""
        self._console = Console(stderr=True)
        self._is_stopping = False
        self._before: Any = None

    def __enter__(self) -> Self:
        """Handle Ctrl-C from now on. Main thread only."""
        self._before = signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handler of Ctrl-C."""
        signal.signal(signal.SIGINT, self._before)

    def should_stop(self) -> bool:
        """Tell whether Ctrl-C was pressed."""
        return self._is_stopping

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Progress]:
        """Show one stage while the context is open."""
        if not self._console.is_terminal:
            lines = _Lines(title, total)
            yield lines
            lines.finish()
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, TextColumn("{task.fields[facts]}"), console=self._console) as bar:
            yield _Bar(bar, title, total)

    def _stop(self, *_: object) -> None:
        if self._is_stopping:
            raise KeyboardInterrupt
        self._is_stopping = True
        self._console.print("Stopping after this step. Press Ctrl-C again to stop at once.", soft_wrap=True)


class _Bar:
    def __init__(self, bar: RichProgress, title: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(title, total=total, facts="")

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        self._bar.update(self._task, completed=done, facts=_text(facts or {}))


class _Lines:
    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._start = self._last = time.monotonic()
        self._first: int | None = None
        self._line = ""

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        gained = done - self._first
        left_s = (now - self._start) / gained * (self._total - done) if gained else 0.0
        self._line = f"{self._title}: {done:,} of {self._total:,} {_text(facts or {})}".rstrip()
        if now - self._last >= _LINE_EVERY_S:
            self._last = now
            log.info("%s, about %d s left", self._line, left_s)

    def finish(self) -> None:
        log.info("%s, %d s in all", self._line or self._title, time.monotonic() - self._start)


def _text(facts: Mapping[str, Any]) -> str:
    """Return the facts as one line; of several dictionaries, each behind its name."""
    dictionaries = facts.get("dictionaries")
    if not dictionaries:
        return " ".join(f"{name} {value:,}" for name, value in facts.items() if isinstance(value, int | float))
    parts = []
    for name, values in dictionaries.items():
        figures = (
            f"explained {values['explained_variance']:.3f} L0 {values['l0']:.1f} dead {values['dead_fraction']:.1%}"
            if "l0" in values
            else ""
        )
        resampled = f" resampled {values['resampled']}" if values.get("resampled") else ""
        parts.append((f"{name}: " if len(dictionaries) > 1 else "") + figures + resampled)
    return "; ".join(parts)

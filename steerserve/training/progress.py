"""How far a run is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINE_EVERY_S = 15.0
log = logging.getLogger(__name__)


class Progress(Protocol):
    """What a stage of a run tells while it works."""

    def update(self, done: int, **facts: float) -> None:
        """Say how much is done, with numbers worth seeing."""


@contextmanager
def stage(title: str, total: int) -> Iterator[Progress]:
    """Show the progress of one stage while the context is open."""
    console = Console(stderr=True)
    if not console.is_terminal:
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
    with RichProgress(*columns, TextColumn("{task.fields[facts]}"), console=console) as bar:
        yield _Bar(bar, title, total)


class _Bar:
    def __init__(self, bar: RichProgress, title: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(title, total=total, facts="")

    def update(self, done: int, **facts: float) -> None:
        self._bar.update(self._task, completed=done, facts=_text(facts))


class _Lines:
    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._start = self._last = time.monotonic()
        self._first: int | None = None
        self._line = ""

    def update(self, done: int, **facts: float) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        gained = done - self._first
        left_s = (now - self._start) / gained * (self._total - done) if gained else 0.0
        self._line = f"{self._title}: {done} of {self._total} {_text(facts)}"
        if now - self._last >= _LINE_EVERY_S:
            self._last = now
            log.info("%s, about %d s left", self._line, left_s)

    def finish(self) -> None:
        log.info("%s, %d s in all", self._line or self._title, time.monotonic() - self._start)


def _text(facts: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in facts.items())

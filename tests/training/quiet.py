"""A silent observer that can interrupt or stop the run it follows."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from steerserve.core.observer import SilentObserver

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Quiet(SilentObserver):
    """Counts updates. Raises KeyboardInterrupt at `cut_at`; stops from `stop_at` on, or in the stage `stop_in`."""

    def __init__(self, *, cut_at: int | None = None, stop_at: int | None = None, stop_in: str = "") -> None:
        self.cut_at, self.stop_at, self.stop_in = cut_at, stop_at, stop_in
        self.calls = 0
        self.stages: list[str] = []
        self.facts: dict[str, Any] = {}

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Self]:
        self.stages.append(title)
        with super().stage(title, total):
            yield self

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        del done
        self.facts = dict(facts or {})
        self.calls += 1
        if self.calls == self.cut_at:
            raise KeyboardInterrupt

    def should_stop(self) -> bool:
        if self.stop_in:
            return self.stages[-1:] == [self.stop_in]
        return self.stop_at is not None and self.calls >= self.stop_at

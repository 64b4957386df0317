"""An observer that shows nothing, and can interrupt or stop the run it follows."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Quiet:
    """Counts updates; raises KeyboardInterrupt at the one of number `cut_at`, asks for a stop from `stop_at` on, or
    while it is in the stage `stop_in`.
    """

    def __init__(self, *, cut_at: int | None = None, stop_at: int | None = None, stop_in: str = "") -> None:
        self.cut_at, self.stop_at, self.stop_in = cut_at, stop_at, stop_in
        self.calls = 0
        self.stages: list[str] = []
        self.facts: dict[str, Any] = {}

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Quiet]:
        del total
        self.stages.append(title)
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

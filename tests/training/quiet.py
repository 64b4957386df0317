"""A progress that shows nothing and can interrupt the run it belongs to, as Ctrl-C would."""

from __future__ import annotations


class Quiet:
    """Counts its calls; raises KeyboardInterrupt at the call of number `after`."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.calls = 0

    def update(self, done: int, **facts: float) -> None:
        del done, facts
        self.calls += 1
        if self.calls == self.after:
            raise KeyboardInterrupt

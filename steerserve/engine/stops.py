"""Holding back text that may turn out to be the start of a stop string."""

from __future__ import annotations

from typing import NamedTuple


class StopText(NamedTuple):
    """Text that is final, and the stop string that ended it."""

    text: str
    matched: str | None


class StopMatcher:
    """Watches a growing text for stop strings."""

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        """Watch for `stops`; `include` keeps the one that matched in the text."""
        self._stops = tuple(stop for stop in stops if stop)
        self._include = include
        self._held = ""

    def push(self, text: str, *, can_stop: bool) -> StopText:
        """Add text; return what is final. Where `can_stop` is false everything passes unmatched."""
        if not self._stops:
            return StopText(text, None)
        whole = self._held + text
        if not can_stop:
            self._held = ""
            return StopText(whole, None)
        found = [(whole.find(stop), stop) for stop in self._stops if stop in whole]
        if found:
            start, stop = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return StopText(whole[: start + len(stop) * self._include], stop)
        num_held = max(
            (size for stop in self._stops for size in range(1, len(stop)) if whole.endswith(stop[:size])), default=0
        )
        final = len(whole) - num_held
        self._held = whole[final:]
        return StopText(whole[:final], None)

    def flush(self) -> str:
        """Return what was held back, now that the text has ended."""
        held, self._held = self._held, ""
        return held

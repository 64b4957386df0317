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
        """Add text; return what is final. Where `can_stop` is false nothing matches, but a beginning is held back."""
        if not self._stops:
            return StopText(text, None)
        whole = self._held + text
        found = [(whole.find(stop), stop) for stop in self._stops if stop in whole] if can_stop else []
        if found:
            start, stop = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return StopText(whole[: start + len(stop) * self._include], stop)
        final = len(whole) - max(_num_started(stop, whole) for stop in self._stops)
        self._held = whole[final:]
        return StopText(whole[:final], None)

    def flush(self) -> str:
        """Return what was held back, now that the text has ended."""
        held, self._held = self._held, ""
        return held


def _num_started(stop: str, text: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`, as many as can be."""
    tail = text[-(len(stop) - 1) :] if len(stop) > 1 else ""
    start = tail.find(stop[0])
    while start >= 0:
        if stop.startswith(tail[start:]):
            return len(tail) - start
        start = tail.find(stop[0], start + 1)
    return 0

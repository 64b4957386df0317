"""Finds stop strings in growing text, and holds back text that may be the start of one."""

from __future__ import annotations

from typing import NamedTuple


class StopText(NamedTuple):
    """Text that is final, and the stop string that ended it."""

    text: str
    matched: str | None
    """The stop string; None if none matched."""


class StopMatcher:
    """Finds stop strings in a growing text."""

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        """Look for `stops`; `include` keeps the matching stop string in the text."""
        self._stops = tuple(stop for stop in stops if stop)
        self._include = include
        self._held = ""

    def push(self, text: str, *, can_stop: bool) -> StopText:
        """Add text; return what is final. If `can_stop` is false, stop strings are held back and never match."""
        if not self._stops:
            return StopText(text, None)
        whole = self._held + text
        hits = [(whole.find(stop), stop) for stop in self._stops if stop in whole] if can_stop else []
        if hits:
            start, stop = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return StopText(whole[: start + len(stop) * self._include], stop)
        final = len(whole) - max(_num_started(stop, whole) for stop in self._stops)
        self._held = whole[final:]
        return StopText(whole[:final], None)

    def flush(self) -> str:
        """Return the text held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _num_started(stop: str, text: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `stop`."""
    tail = text[-(len(stop) - 1) :] if len(stop) > 1 else ""
    start = tail.find(stop[0])
    while start >= 0:
        if stop.startswith(tail[start:]):
            return len(tail) - start
        start = tail.find(stop[0], start + 1)
    return 0

"""How events leave the engine's thread: to an event loop, or to a thread that blocks."""

from __future__ import annotations

import asyncio
import queue
from typing import TYPE_CHECKING

from steerserve.engine.request import TokenEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from steerserve.engine.sequence import Sequence


class TokenStream:
    """The events of one sample, for the event loop that submitted it."""

    def __init__(self, abort: Callable[[Sequence], None]) -> None:
        """Belong to the running event loop; `abort` is the engine's."""
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self._sequence: Sequence | None = None

    def bind(self, sequence: Sequence) -> None:
        """Set the sequence that `abort` drops."""
        self._sequence = sequence

    def sink(self, event: TokenEvent | Exception) -> None:
        """Take an event from the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the event loop was closed, so the events have no reader any more
            self.abort()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yield events up to the last.

        Raises:
            EngineError: the forward pass failed, or the engine stopped.
        """
        while True:
            event = await self._events.get()
            is_last = isinstance(event, Exception) or event.finish_reason is not None
            if is_last:
                self._sequence = None  # a finished stream must not keep the sequence's dictionaries in memory
            if isinstance(event, Exception):
                raise event
            yield event
            if is_last:
                return

    def abort(self) -> None:
        """Give the slot back before the next step. Any thread. Calling it again has no effect."""
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            self._abort(sequence)


def drain(events: queue.SimpleQueue[TokenEvent | Exception]) -> Iterator[TokenEvent]:
    """Yield the events of one sample up to the last, blocking.

    Raises:
        EngineError: the forward pass failed, or the engine stopped.
    """
    while True:
        event = events.get()
        if isinstance(event, Exception):
            raise event
        yield event
        if event.finish_reason is not None:
            return

"""Calls that use the model beside generation: each runs alone on the engine's thread, between two steps."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """A function, and who waits for what it returns."""

    fn: Callable[[], Result]
    future: Future[Result]

    def run(self) -> None:
        """Run the function unless its caller has gone; what it raises is the caller's alone."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.fn()
        except Exception as error:  # noqa: BLE001 it must end neither the thread nor anybody else's request
            self.future.set_exception(error)
            del self  # the traceback knows this frame, and the frame would know the error
        else:
            self.future.set_result(result)

    def refuse(self, error: Exception) -> None:
        """End the wait with an error, where the function has not begun."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class CallQueue:
    """Calls in order of arrival. Not safe by itself: its owner's lock guards it."""

    def __init__(self) -> None:
        """Start empty."""
        self._calls: deque[Call[Any]] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def put(self, fn: Callable[[], Result]) -> Future[Result]:
        """Queue a function; return what will hold its result."""
        future: Future[Result] = Future()
        self._calls.append(Call(fn, future))
        return future

    def take(self) -> Call[Any] | None:
        """Return the next call whose caller still waits."""
        while self._calls:
            call = self._calls.popleft()
            if not call.future.cancelled():
                return call
        return None

    def clear(self) -> list[Call[Any]]:
        """Return all that is left, and forget it."""
        calls = list(self._calls)
        self._calls.clear()
        return calls

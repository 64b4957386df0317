"""Exclusive calls: functions that use the model beside generation, each alone on the engine's thread between steps."""

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
    """A function with the future that its caller waits for."""

    fn: Callable[[], Result]
    future: Future[Result]

    def run(self) -> None:
        """Run the function unless the caller has cancelled it; only the caller sees the exception it raises."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.fn()
        except Exception as error:  # noqa: BLE001 it must end neither the thread nor anybody else's request
            self.future.set_exception(error)
            del self  # the traceback refers to this frame, and the frame would refer to the error
        else:
            self.future.set_result(result)

    def refuse(self, error: Exception) -> None:
        """Give the caller an error, if the function has not begun."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class CallQueue:
    """Calls in order of arrival. Not thread-safe: the lock of its owner guards it."""

    def __init__(self) -> None:
        """Start empty."""
        self._calls: deque[Call[Any]] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def put(self, fn: Callable[[], Result]) -> Future[Result]:
        """Queue a function; return the future of its result."""
        future: Future[Result] = Future()
        self._calls.append(Call(fn, future))
        return future

    def take(self) -> Call[Any] | None:
        """Return the next call that is not cancelled; None if the queue has no such call."""
        while self._calls:
            call = self._calls.popleft()
            if not call.future.cancelled():
                return call
        return None

    def clear(self) -> list[Call[Any]]:
        """Empty the queue; return the calls that were in it."""
        calls = list(self._calls)
        self._calls.clear()
        return calls

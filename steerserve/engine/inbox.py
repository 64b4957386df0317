"""What reaches the engine from other threads: requests, aborts, calls, and the order to stop."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

from steerserve.core.errors import QueueFullError, UnavailableError
from steerserve.engine.calls import CallQueue
from steerserve.engine.request import Phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from steerserve.engine.calls import Call
    from steerserve.engine.sequence import Sequence

Result = TypeVar("Result")

_MAX_RETRY_AFTER_S = 60


class Inbox:
    """Filled by any thread, emptied by the engine's, which waits here while it has nothing to do."""

    def __init__(self, num_slots: int, max_queue: int) -> None:
        """Let `max_queue` sequences wait beside those that hold the slots, and as many calls."""
        self._num_slots = num_slots
        self._max_queue = max_queue
        self._work = threading.Condition()
        self._sequences: list[Sequence] = []
        self._calls = CallQueue()
        self._has_aborts = False
        self._is_closed = False
        self._num_pending = 0
        self._num_requests = 0

    @property
    def num_waiting(self) -> int:
        """Sequences that the engine has not seen yet."""
        return len(self._sequences)

    @property
    def num_pending(self) -> int:
        """Sequences that have not ended, whether seen or not."""
        return self._num_pending

    @property
    def num_requests_total(self) -> int:
        """Sequences that were ever taken."""
        return self._num_requests

    @property
    def has_any(self) -> bool:
        """Whether there is something for the engine to do."""
        return bool(self._sequences or self._calls or self._has_aborts)

    def put(self, sequences: list[Sequence]) -> None:
        """Queue sequences, all or none.

        Raises:
            QueueFullError: too many wait already.
            UnavailableError: the engine is stopping.
        """
        with self._work:
            self._check_open()
            num_unplaced = self._num_pending - self._num_slots + len(sequences)
            # A request of many samples may wait alone, however many it has; otherwise it could never be served.
            if num_unplaced > self._max_queue and self._num_pending:
                raise self._full(f"{self._num_pending} samples are running or waiting")
            self._num_pending += len(sequences)
            self._num_requests += len(sequences)
            self._sequences += sequences
            self._work.notify_all()

    def call(self, fn: Callable[[], Result]) -> Future[Result]:
        """Queue a function that runs between two steps.

        Raises:
            QueueFullError: too many wait already.
            UnavailableError: the engine is stopping.
        """
        with self._work:
            self._check_open()
            if len(self._calls) >= max(self._max_queue, 1):
                raise self._full(f"{len(self._calls)} readings of activations are waiting")
            future = self._calls.put(fn)
            self._work.notify_all()
        return future

    def abort(self, sequence: Sequence) -> None:
        """Mark a sequence to be dropped before the next step. Any number of times."""
        with self._work:
            if sequence.phase is not Phase.FINISHED and not sequence.is_aborted:
                sequence.is_aborted = True
                self._has_aborts = True
                self._work.notify_all()

    def close(self) -> None:
        """Take nothing any more, and wake the engine."""
        with self._work:
            self._is_closed = True
            self._work.notify_all()

    def wait(self, *, is_busy: bool) -> bool:
        """Wait for something to do, unless the engine `is_busy` anyway. False once it is to stop."""
        with self._work:
            while not (self._is_closed or is_busy or self.has_any):
                self._work.wait()
            return not self._is_closed

    def take(self) -> tuple[list[Sequence], bool]:
        """Return the sequences that have arrived, and whether any that is under way was aborted."""
        with self._work:
            arrived, self._sequences = self._sequences, []
            has_aborts, self._has_aborts = self._has_aborts, False
        return arrived, has_aborts

    def take_call(self) -> Call[Any] | None:
        """Return the next call."""
        with self._work:
            return self._calls.take()

    def refuse_calls(self, message: str) -> None:
        """End the wait of every call that has not begun."""
        with self._work:
            calls = self._calls.clear()
        for call in calls:  # outside the lock, since whoever waits is told at once
            call.refuse(UnavailableError(message))

    def count_ended(self) -> None:
        """Count a sequence as ended."""
        with self._work:
            self._num_pending -= 1

    def lose_all(self) -> list[Sequence]:
        """Count every sequence as ended; return those that the engine has not seen."""
        with self._work:
            lost, self._sequences = self._sequences, []
            self._num_pending = 0
        return lost

    def _check_open(self) -> None:
        if self._is_closed:
            message = "The server is stopping."
            raise UnavailableError(message)

    def _full(self, what: str) -> QueueFullError:
        # The guess when a place is free: a second for each full batch that is ahead.
        retry_after_s = min(1 + self._num_pending // self._num_slots, _MAX_RETRY_AFTER_S)
        message = f"The server is busy: {what}, and {self._max_queue} may wait. Try again in a moment."
        return QueueFullError(message, retry_after_s=retry_after_s)

"""What other threads hand to the engine: sequences, aborts, exclusive calls, and the order to stop."""

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
    """Filled by any thread and emptied by the engine's, which waits here while it is idle."""

    def __init__(self, num_slots: int, max_queue: int) -> None:
        """Let `max_queue` sequences wait beside those in the slots, and as many calls (at least one)."""
        self._num_slots = num_slots
        self._max_queue = max_queue
        self._changed = threading.Condition()
        self._sequences: list[Sequence] = []
        self._calls = CallQueue()
        self._has_aborts = False
        self._is_closed = False
        self._num_pending = 0
        self._num_requests = 0

    @property
    def num_waiting(self) -> int:
        """Number of sequences that the engine has not taken yet."""
        return len(self._sequences)

    @property
    def num_pending(self) -> int:
        """Number of sequences that have not ended, taken or not."""
        return self._num_pending

    @property
    def num_requests_total(self) -> int:
        """Number of all sequences ever queued."""
        return self._num_requests

    @property
    def has_any(self) -> bool:
        """Whether sequences, calls or aborts wait for the engine."""
        return bool(self._sequences or self._calls or self._has_aborts)

    def put(self, sequences: list[Sequence]) -> None:
        """Queue all of these sequences, or none.

        Raises:
            QueueFullError: too many sequences wait.
            UnavailableError: the engine is stopping.
        """
        with self._changed:
            self._check_open()
            num_without_slot = self._num_pending - self._num_slots + len(sequences)
            # A request with more samples than slots and queue hold is taken if nothing else runs or waits: there is no
            # better moment for it.
            if num_without_slot > self._max_queue and self._num_pending:
                raise self._full(f"{self._num_pending} samples are running or waiting")
            self._num_pending += len(sequences)
            self._num_requests += len(sequences)
            self._sequences += sequences
            self._changed.notify_all()

    def call(self, fn: Callable[[], Result]) -> Future[Result]:
        """Queue a function to run between two steps.

        Raises:
            QueueFullError: too many calls wait.
            UnavailableError: the engine is stopping.
        """
        with self._changed:
            self._check_open()
            if len(self._calls) >= max(self._max_queue, 1):
                raise self._full(f"{len(self._calls)} background tasks are waiting")
            future = self._calls.put(fn)
            self._changed.notify_all()
        return future

    def abort(self, sequence: Sequence) -> None:
        """Mark a sequence to be dropped before the next step. Calling it again has no effect."""
        with self._changed:
            if sequence.phase is not Phase.FINISHED and not sequence.is_aborted:
                sequence.is_aborted = True
                self._has_aborts = True
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse everything from now on, and wake the engine."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait(self, *, is_busy: bool) -> bool:
        """Wait for work, unless the engine `is_busy` with sequences; return whether it should go on."""
        with self._changed:
            while not (self._is_closed or is_busy or self.has_any):
                self._changed.wait()
            return not self._is_closed

    def take(self) -> tuple[list[Sequence], bool]:
        """Return the sequences that have arrived, and whether any sequence was aborted since the last call."""
        with self._changed:
            arrived, self._sequences = self._sequences, []
            has_aborts, self._has_aborts = self._has_aborts, False
        return arrived, has_aborts

    def take_call(self) -> Call[Any] | None:
        """Return the next exclusive call; None if the queue is empty."""
        with self._changed:
            return self._calls.take()

    def refuse_calls(self, message: str) -> None:
        """Give every call that has not begun an error."""
        with self._changed:
            calls = self._calls.clear()
        for call in calls:  # outside the lock, since a refused caller runs its callbacks at once
            call.refuse(UnavailableError(message))

    def count_ended(self) -> None:
        """Count one sequence as ended."""
        with self._changed:
            self._num_pending -= 1

    def lose_all(self) -> list[Sequence]:
        """Count every sequence as ended; return those that the engine has not taken."""
        with self._changed:
            lost, self._sequences = self._sequences, []
            self._num_pending = 0
        return lost

    def _check_open(self) -> None:
        if self._is_closed:
            message = "The server is stopping."
            raise UnavailableError(message)

    def _full(self, what: str) -> QueueFullError:
        # An estimate: one second for each full batch that waits.
        retry_after_s = min(1 + self._num_pending // self._num_slots, _MAX_RETRY_AFTER_S)
        message = f"The server is busy: {what}, and at most {self._max_queue} may wait. Try again in a moment."
        return QueueFullError(message, retry_after_s=retry_after_s)

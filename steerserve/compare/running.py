"""Scoring beside generation: one text after the other, each in pieces between the engine's steps."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from steerserve.compare.scoring import Scorer, drive
from steerserve.core.errors import QueueFullError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from steerserve.compare.arms import Arm
    from steerserve.compare.metrics import Reading

    RunExclusive = Callable[[Callable[[], Reading | None]], Future[Reading | None]]
    """`Engine.run_exclusive`: runs a function while nobody else uses the model."""

Result = TypeVar("Result")

_RETRY_S = 0.05


class ScoringLine:
    """Scores the texts of all comparisons in one thread, so that only one comparison's prompts are in memory."""

    def __init__(self, run_exclusive: RunExclusive) -> None:
        """Use the model through `run_exclusive` alone."""
        self._run_exclusive = run_exclusive
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._current: Scorer | None = None
        self._is_stopped = False

    def submit(
        self, scorer: Scorer, arm: Arm, token_ids: Sequence[int], is_wanted: Callable[[], bool]
    ) -> Future[Reading]:
        """Queue a text; it is given up between two pieces once it is not wanted any more.

        Raises:
            UnavailableError: the server is stopping; the future raises it too, or EngineError.
        """
        return self._queue(lambda: self._score(scorer, arm, token_ids, is_wanted))

    def release(self, scorer: Scorer) -> None:
        """Forget a comparison's prompts, once its texts are scored or not wanted."""
        with contextlib.suppress(UnavailableError):  # the thread has ended, and what it knew with it
            self._queue(lambda: self._leave(scorer))

    def stop(self) -> None:
        """End the thread; call it once the engine takes no more work. Any number of times."""
        with self._lock:
            self._is_stopped = True
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown(cancel_futures=True)
        self._current = None

    def _queue(self, work: Callable[[], Result]) -> Future[Result]:
        with self._lock:
            if self._is_stopped:
                message = "The server is stopping."
                raise UnavailableError(message)
            self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="scoring")
            return self._worker.submit(work)

    def _score(self, scorer: Scorer, arm: Arm, token_ids: Sequence[int], is_wanted: Callable[[], bool]) -> Reading:
        if scorer is not self._current:
            if self._current is not None:
                self._current.forget()
            self._current = scorer
        for call in drive(scorer.read(arm, token_ids)):
            if not is_wanted():
                raise CancelledError
            if (reading := self._call(call)) is not None:
                return reading
        raise CancelledError

    def _call(self, call: Callable[[], Reading | None]) -> Reading | None:
        while True:
            try:
                return self._run_exclusive(call).result()
            except UnavailableError:
                raise
            except QueueFullError:  # others read so much that there was no place for this
                if self._is_stopped:
                    raise
                time.sleep(_RETRY_S)

    def _leave(self, scorer: Scorer) -> None:
        scorer.forget()
        if self._current is scorer:
            self._current = None

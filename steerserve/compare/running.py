"""Scoring beside generation: one text after the other, each in pieces between two steps of the engine."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steerserve.compare.scoring import Scorer
from steerserve.core.errors import UnavailableError
from steerserve.engine.background import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from steerserve.compare.arms import Arm
    from steerserve.compare.metrics import SampleScore
    from steerserve.engine.background import RunExclusive

_MAX_IN_TURN = 16
"""Most texts of one comparison in a row while others wait; after a change of comparison its prompts are read again."""


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    scorer: Scorer
    arm: Arm
    token_ids: Sequence[int]
    is_needed: Callable[[], bool]
    future: Future[SampleScore] = field(default_factory=Future)


class ScoringQueue:
    """Scores the texts of all comparisons in one thread, so that only one comparison's prompts are in memory."""

    def __init__(self, run_exclusive: RunExclusive) -> None:
        """Use the model through `run_exclusive` alone."""
        self._run_exclusive = run_exclusive
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._texts: list[_Text] = []
        """Texts that wait, in order of arrival."""
        self._current: Scorer | None = None
        self._num_in_turn = 0
        """Number of texts of `_current` that were scored since it became the current comparison."""
        self._is_stopped = False

    def submit(
        self, scorer: Scorer, arm: Arm, token_ids: Sequence[int], is_needed: Callable[[], bool]
    ) -> Future[SampleScore]:
        """Queue a text; its scoring ends between two pieces once `is_needed` returns false.

        Raises:
            UnavailableError: the server is stopping; the future may raise it too, or EngineError.
        """
        text = _Text(scorer, arm, token_ids, is_needed)
        with self._lock:
            self._queue(self._score_next)
            self._texts.append(text)
        return text.future

    def release(self, scorer: Scorer) -> None:
        """Free the memory of a comparison's prompts, once its texts are scored or no longer needed."""
        with self._lock, contextlib.suppress(UnavailableError):  # the thread has ended, and its memory is free
            self._queue(lambda: self._forget(scorer))

    def stop(self) -> None:
        """End the thread; call it once the engine takes no more work. Any number of times."""
        with self._lock:
            self._is_stopped = True
            worker, self._worker = self._worker, None
            waiting, self._texts = self._texts, []
        for text in waiting:
            text.future.cancel()
        if worker is not None:
            worker.shutdown(cancel_futures=True)
        self._current = None

    def _queue(self, work: Callable[[], None]) -> Future[None]:
        """Let the thread do `work` after what is queued already. The caller holds the lock."""
        if self._is_stopped:
            message = "The server is stopping."
            raise UnavailableError(message)
        self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="scoring")
        return self._worker.submit(work)

    def _score_next(self) -> None:
        text = self._next_text()
        if text is None or not text.future.set_running_or_notify_cancel():
            return
        try:
            score = self._score(text)
        except BaseException as error:  # noqa: BLE001 raised again by whoever waits for the future
            text.future.set_exception(error)
        else:
            text.future.set_result(score)

    def _next_text(self) -> _Text | None:
        """Take the text that waits longest, one of the current comparison as long as its turn lasts."""
        with self._lock:
            if not self._texts:
                return None
            stays = self._num_in_turn < _MAX_IN_TURN
            matches = (index for index, text in enumerate(self._texts) if (text.scorer is self._current) == stays)
            return self._texts.pop(next(matches, 0))

    def _score(self, text: _Text) -> SampleScore:
        if not text.is_needed():  # its comparison may have been released
            raise CancelledError
        if text.scorer is not self._current:
            if self._current is not None:
                self._current.forget()
            self._current, self._num_in_turn = text.scorer, 0
        self._num_in_turn += 1
        return drive(
            self._run_exclusive,
            text.scorer.read(text.arm, text.token_ids),
            is_cancelled=lambda: not text.is_needed(),
            should_retry=lambda: not self._is_stopped,
        )

    def _forget(self, scorer: Scorer) -> None:
        scorer.forget()
        if self._current is scorer:
            self._current = None

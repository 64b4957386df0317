"""Scoring beside generation: one text after the other, each in pieces between the engine's steps."""

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
"""Texts of one comparison after another while others wait: each change of comparison reads its prompts again."""


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    scorer: Scorer
    arm: Arm
    token_ids: Sequence[int]
    is_wanted: Callable[[], bool]
    future: Future[SampleScore] = field(default_factory=Future)


class ScoringQueue:
    """Scores the texts of all comparisons in one thread, so that only one comparison's prompts are in memory."""

    def __init__(self, run_exclusive: RunExclusive) -> None:
        """Use the model through `run_exclusive` alone."""
        self._run_exclusive = run_exclusive
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._texts: list[_Text] = []
        """Those that wait, in the order in which they came."""
        self._current: Scorer | None = None
        self._num_in_turn = 0
        """Texts of the current comparison since it became that."""
        self._is_stopped = False

    def submit(
        self, scorer: Scorer, arm: Arm, token_ids: Sequence[int], is_wanted: Callable[[], bool]
    ) -> Future[SampleScore]:
        """Queue a text; it is given up between two pieces once it is not wanted any more.

        Raises:
            UnavailableError: the server is stopping; the future raises it too, or EngineError.
        """
        text = _Text(scorer, arm, token_ids, is_wanted)
        with self._lock:
            self._queue(self._score_next)
            self._texts.append(text)
        return text.future

    def release(self, scorer: Scorer) -> None:
        """Forget a comparison's prompts, once its texts are scored or not wanted."""
        with self._lock, contextlib.suppress(UnavailableError):  # the thread has ended, and what it knew with it
            self._queue(lambda: self._leave(scorer))

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
        """Let the thread do something after what it has been given already; the lock is held."""
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
        except BaseException as error:  # noqa: BLE001 raised again by who waits for it
            text.future.set_exception(error)
        else:
            text.future.set_result(score)

    def _next_text(self) -> _Text | None:
        """Take the text that waits longest, of the current comparison for as long as it has a turn."""
        with self._lock:
            if not self._texts:
                return None
            stays = self._num_in_turn < _MAX_IN_TURN
            wanted = (place for place, text in enumerate(self._texts) if (text.scorer is self._current) == stays)
            return self._texts.pop(next(wanted, 0))

    def _score(self, text: _Text) -> SampleScore:
        if not text.is_wanted():  # its comparison may have been released
            raise CancelledError
        if text.scorer is not self._current:
            if self._current is not None:
                self._current.forget()
            self._current, self._num_in_turn = text.scorer, 0
        self._num_in_turn += 1
        return drive(
            self._run_exclusive,
            text.scorer.read(text.arm, text.token_ids),
            is_cancelled=lambda: not text.is_wanted(),
            should_retry=lambda: not self._is_stopped,
        )

    def _leave(self, scorer: Scorer) -> None:
        scorer.forget()
        if self._current is scorer:
            self._current = None

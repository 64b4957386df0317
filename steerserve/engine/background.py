"""Work that uses the model beside generation, in pieces that each take about as long as one step.

A piece of work is a generator: it computes up to its next `yield`, other streams go on, and what it returns is the
result. Every package that measures, reads or scores with the served model writes such generators and drives them here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, TypeVar

from steerserve.core.errors import QueueFullError, UnavailableError

Result = TypeVar("Result")
Pieces = Generator[None, None, Result]
RunExclusive = Callable[[Callable[[], Any]], Future[Any]]
"""The type of `Probe.run_exclusive`."""

_RETRY_S = 0.05


def run_pieces(pieces: Pieces[Result]) -> Result:
    """Do all of the work at once, on the calling thread."""
    results: list[Result] = []
    while not results:
        _advance(pieces, results)
    return results[0]


def drive(
    run_exclusive: RunExclusive,
    pieces: Pieces[Result],
    *,
    is_cancelled: Callable[[], bool] | None = None,
    should_retry: Callable[[], bool] | None = None,
) -> Result:
    """Do the work piece by piece on the engine's thread, blocking; return its result.

    Args:
        run_exclusive: Runs one piece.
        pieces: The work.
        is_cancelled: Asked before every piece; if it returns true, the rest of the work is dropped.
        should_retry: Asked if the engine's queue is full; while it returns true, the same piece is tried again. If
            absent, a full queue ends the work.

    Raises:
        CancelledError: `is_cancelled` returned true.
        QueueFullError: too many other calls wait.
        UnavailableError: the engine is stopping.
    """
    results: list[Result] = []
    while not results:
        if is_cancelled is not None and is_cancelled():
            raise CancelledError
        try:
            run_exclusive(partial(_advance, pieces, results)).result()
        except UnavailableError:
            raise
        except QueueFullError:
            if should_retry is None or not should_retry():
                raise
            time.sleep(_RETRY_S)
    return results[0]


async def drive_async(run_exclusive: RunExclusive, pieces: Pieces[Result]) -> Result:
    """Do the work piece by piece on the engine's thread; cancelling this drops the pieces that have not begun.

    Raises:
        QueueFullError: too many other calls wait.
        UnavailableError: the engine is stopping.
    """
    results: list[Result] = []
    while not results:
        await asyncio.wrap_future(run_exclusive(partial(_advance, pieces, results)))
    return results[0]


def _advance(pieces: Pieces[Result], results: list[Result]) -> None:
    """Compute one piece; append the result if it was the last."""
    try:
        next(pieces)
    except StopIteration as end:
        results.append(end.value)

"""Threads for calls that may block for long, so that they do not occupy the event loop's default threads."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Pool:
    """A few threads, created by the first call. Event loop thread only, except `close`."""

    def __init__(self, name: str, num_threads: int) -> None:
        """Run at most `num_threads` calls at a time, in threads whose names begin with `name`."""
        self._name = name
        self._num_threads = num_threads
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a call in one of the threads, as `asyncio.to_thread` does, and return its result."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._num_threads, thread_name_prefix=self._name)
        context = contextvars.copy_context()
        bound = functools.partial(context.run, call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, bound)

    def close(self) -> None:
        """Drop the calls that wait and let the running ones finish. Any number of times."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

"""One streamed answer of a model in this process, read by a thread without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.api.backend import Json
    from steerserve.requests.answers.writer import AnswerWriter
    from steerserve.requests.running import Generation


class LocalChunks:
    """The chunks of one generation, read from another thread than that of its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, generation: Generation, writer: AnswerWriter[Any, Any]) -> None:
        """Begin to read `generation` on `loop`."""
        self._loop = loop
        self._generation = generation
        self._arrived: queue.SimpleQueue[list[Json] | Exception | None] = queue.SimpleQueue()
        self._is_over = False
        self._reading = asyncio.run_coroutine_threadsafe(self._read(writer), loop)

    def __iter__(self) -> Iterator[Json]:
        """Yield the chunks as JSON objects; leaving the loop early ends the generation.

        Raises:
            SteerserveError: the generation failed.
        """
        try:
            while not self._is_over and (item := self._arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield from item
        finally:
            self.close()

    def close(self) -> None:
        """End the generation if it still runs. Any number of times."""
        self._is_over = True
        self._reading.cancel()
        with contextlib.suppress(RuntimeError):  # the model was closed before
            # A task that is cancelled before its first step never enters its `with` block.
            self._loop.call_soon_threadsafe(self._generation.close)

    async def _read(self, writer: AnswerWriter[Any, Any]) -> None:
        try:
            with self._generation:
                async for chunks in writer.chunks(lambda chunks: [chunk.model_dump(mode="json") for chunk in chunks]):
                    self._arrived.put(chunks)
            self._arrived.put(None)
        except asyncio.CancelledError:
            self._arrived.put(UnavailableError("The model was closed before this answer was complete."))
            raise
        except Exception as error:  # noqa: BLE001 raised again by the reader
            self._arrived.put(error)

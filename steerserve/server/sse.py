"""Server-sent events: their exact bytes, and a response that frees its slots however it ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent

from steerserve.core.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pydantic import BaseModel
    from starlette.types import Receive, Scope, Send

    from steerserve.requests.running import Generation

DONE = b"data: [DONE]\n\n"
_SEND_TIMEOUT_S = 60.0
"""A client that reads nothing for this long is treated as disconnected."""
_FAREWELL_S = 1.0
"""Time before the end of the drain at which clients get the final error: the stop may be noticed 0.5 s late."""


def event_bytes(body: BaseModel) -> bytes:
    """Return one event: a single line of JSON."""
    return line_bytes(body.model_dump_json())


def named_event_bytes(name: str, body: BaseModel) -> bytes:
    """Return one event with a name."""
    return b"event: " + name.encode() + b"\n" + event_bytes(body)


def line_bytes(line: str) -> bytes:
    """Return one event of a line of JSON.

    Some clients split the decoded text at more characters than the standard's line ends; JSON can escape these.
    """
    for separator in ("\u2028", "\u2029", "\u0085"):
        line = line.replace(separator, f"\\u{ord(separator):04x}")
    return b"data: " + line.encode() + b"\n\n"


class EventStream(EventSourceResponse):
    """Sends events as they arrive, and comments while none arrive."""

    def __init__(
        self, events: AsyncIterator[bytes], stopping: anyio.Event, *, keep_alive_s: float, drain_s: float
    ) -> None:
        """Send `events`. When the server stops, `stopping` is set, and the stream is cut after `drain_s`."""
        super().__init__(
            events,
            sep="\n",
            ping=keep_alive_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            send_timeout=_SEND_TIMEOUT_S,
            shutdown_event=stopping,
            shutdown_grace_period=drain_s,
        )


class GenerationStream(EventStream):
    """Sends the events of a generation; closes the generation when the client disconnects."""

    def __init__(
        self, events: AsyncIterator[bytes], generation: Generation, *, keep_alive_s: float, drain_s: float
    ) -> None:
        """Send `events`; when the server stops, the stream is cut after `drain_s`."""
        self._stopping = anyio.Event()
        super().__init__(events, self._stopping, keep_alive_s=keep_alive_s, drain_s=drain_s)
        self._generation = generation
        self._drain_s = drain_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, and close the generation even if the stream never began and the iterator never ran."""
        farewell = asyncio.create_task(self._end_before_cut())
        try:
            with self._generation:
                await super().__call__(scope, receive, send)
        finally:
            farewell.cancel()

    async def _end_before_cut(self) -> None:
        """End the stream with an error shortly before the stopping server cuts it."""
        await self._stopping.wait()
        await asyncio.sleep(max(self._drain_s - _FAREWELL_S, 0.0))
        self._generation.fail(
            UnavailableError("The server stopped before this answer was done. Send the request again.")
        )

"""Server-sent events: their exact bytes, and a response that gives its slots back however it ends."""

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
"""A client that reads nothing for so long is taken to be gone."""
_FAREWELL_S = 1.0
"""Kept of the time for draining, to tell clients that it is over; that the server stops is noticed up to 0.5 s late."""


def event_bytes(body: BaseModel) -> bytes:
    """Write one event: a single line of JSON."""
    return line_bytes(body.model_dump_json())


def line_bytes(line: str) -> bytes:
    """Write one event of a line of JSON.

    Clients that split decoded text into lines take more characters for line ends than the standard does; JSON may
    write these as escapes.
    """
    for separator in ("\u2028", "\u2029", "\u0085"):
        line = line.replace(separator, f"\\u{ord(separator):04x}")
    return b"data: " + line.encode() + b"\n\n"


class EventStream(EventSourceResponse):
    """Sends events as they come and a bare comment in silence."""

    def __init__(
        self, events: AsyncIterator[bytes], stopping: anyio.Event, *, keep_alive_s: float, drain_s: float
    ) -> None:
        """Send `events`; when the server stops, `stopping` is set and they may go on for `drain_s`."""
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
    """Sends what is generated; ends the generation when the client is gone."""

    def __init__(
        self, events: AsyncIterator[bytes], generation: Generation, *, keep_alive_s: float, drain_s: float
    ) -> None:
        """Send `events`; when the server stops they may go on for `drain_s`."""
        self._stopping = anyio.Event()
        super().__init__(events, self._stopping, keep_alive_s=keep_alive_s, drain_s=drain_s)
        self._generation = generation
        self._drain_s = drain_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole stream; also where it never began, since then no code of the iterator runs."""
        farewell = asyncio.create_task(self._say_farewell())
        try:
            with self._generation:
                await super().__call__(scope, receive, send)
        finally:
            farewell.cancel()

    async def _say_farewell(self) -> None:
        """End the stream with an error shortly before the server would cut it."""
        await self._stopping.wait()
        await asyncio.sleep(max(self._drain_s - _FAREWELL_S, 0.0))
        self._generation.fail(
            UnavailableError("The server stopped before this answer was done. Send the request again.")
        )

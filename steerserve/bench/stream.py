"""One streamed request, timed as its client sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.client.answers import ServerError

if TYPE_CHECKING:
    from steerserve.client.server_client import AsyncServerClient


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """When the parts of one answer arrived. All times in seconds of one monotonic clock."""

    sent: float
    """When the request was sent."""
    arrivals: tuple[float, ...]
    """When each chunk with text arrived; before the first the server computes the prompt."""
    num_tokens: int
    """Number of generated tokens, as the server counted them."""
    num_prompt_tokens: int
    """Number of tokens of the prompt, as the server counted them."""

    @property
    def gaps(self) -> list[float]:
        """Return the times between neighbouring chunks."""
        return [after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def time_stream(client: AsyncServerClient, body: dict[str, Any]) -> StreamTiming:
    """Send a completion request and time its stream.

    The client adds no wait and no thread between the socket and this clock, so that it measures as a bare one does.

    Raises:
        SteerserveError: the server refuses the request, breaks off, or generates nothing.
    """
    sent = time.perf_counter()
    arrivals: list[float] = []
    usage: dict[str, int] = {}
    async for _, chunk in client.stream("/v1/completions", body):
        if any(choice.get("text") for choice in chunk.get("choices", ())):
            arrivals.append(time.perf_counter())
        usage = chunk.get("usage") or usage
    if not arrivals:
        raise ServerError(f"{client.name} ended a stream without a token.")
    num_tokens = usage.get("completion_tokens", len(arrivals))
    return StreamTiming(sent, tuple(arrivals), num_tokens, usage.get("prompt_tokens", 0))

"""One streamed request, timed as its client sees it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from steerserve.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class BenchError(StartupError):
    """The server cannot be measured: it does not answer, or answers with an error."""


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """When the parts of one answer came. All times in seconds of one monotonic clock."""

    sent: float
    arrivals: tuple[float, ...]
    """One for each chunk that carried text; the first ends the reading of the prompt."""
    num_tokens: int
    """Generated tokens, as the server counted them."""
    num_prompt_tokens: int

    @property
    def gaps(self) -> list[float]:
        """Return the times between neighbouring chunks."""
        return [after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def time_stream(client: httpx.AsyncClient, body: dict[str, Any]) -> StreamTiming:
    """Send a completion request and time its stream.

    Raises:
        BenchError: the server refuses it, or breaks off.
    """
    sent = time.perf_counter()
    arrivals: list[float] = []
    usage: dict[str, int] = {}
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.is_error:
                await response.aread()
                raise refusal(response)
            async for chunk in _chunks(response):
                if any(choice.get("text") for choice in chunk.get("choices", ())):
                    arrivals.append(time.perf_counter())
                usage = chunk.get("usage") or usage
    except (httpx.HTTPError, ValueError) as error:
        message = f"The connection to {client.base_url} broke off: {reason(error)}."
        raise BenchError(message) from error
    if not arrivals:
        message = f"{client.base_url} closed a stream without a token."
        raise BenchError(message)
    num_tokens = usage.get("completion_tokens", len(arrivals))
    return StreamTiming(sent, tuple(arrivals), num_tokens, usage.get("prompt_tokens", 0))


def refusal(response: httpx.Response) -> BenchError:
    """Return the error that says what the server answered; the body must have been read."""
    try:
        said = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = response.text[:200]
    return BenchError(f"{response.request.url} answered {response.status_code}: {said}")


def reason(error: Exception) -> str:
    """Return what an error says, or its name where it says nothing."""
    return str(error) or type(error).__name__


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if not line.startswith("data: {"):
            continue
        chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if error := chunk.get("error"):
            said = error.get("message") if isinstance(error, dict) else error
            message = f"The server failed in a stream: {said}"
            raise BenchError(message)
        yield chunk

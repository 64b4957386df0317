"""Streams that run at the same time, and the server's speed as their timings show it."""

from __future__ import annotations

import asyncio
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.bench.stream import StreamTiming, time_stream
from steerserve.core.errors import SteerserveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from steerserve.client.server_client import AsyncServerClient


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Median and 99th percentile of some times, in milliseconds."""

    p50: float
    """Half of the times are at most this."""
    p99: float
    """All but a hundredth of the times are at most this."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that were sent together and have all finished."""

    streams: tuple[StreamTiming, ...]
    """The timing of each request."""

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second from the first request to the last token, the time for prompts included."""
        start = min(stream.sent for stream in self.streams)
        end = max(stream.arrivals[-1] for stream in self.streams)
        return sum(stream.num_tokens for stream in self.streams) / (end - start)

    @property
    def decode_window(self) -> tuple[float, float]:
        """Start and end of the time in which every stream generated: the latest first token, the earliest last one.

        The server computes no prompt then, and all rows are in its batch. The end lies before the start if the
        streams did not all overlap because the server has fewer slots.
        """
        return max(stream.arrivals[0] for stream in self.streams), min(stream.arrivals[-1] for stream in self.streams)

    @property
    def decode_gaps(self) -> list[float]:
        """Times between neighbouring tokens in the decode window, in seconds."""
        start, end = self.decode_window
        return [
            after - before
            for stream in self.streams
            for before, after in zip(stream.arrivals, stream.arrivals[1:], strict=False)
            if before >= start and after <= end
        ]

    @property
    def step_ms(self) -> float | None:
        """Median time of a decode step, which one slow step does not change; None if no step was seen."""
        gaps = self.decode_gaps
        return statistics.median(gaps) * 1000 if gaps else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Generated tokens per second in the decode window; None if there is no such window."""
        start, end = self.decode_window
        if end <= start:
            return None
        # Not computed from the gaps: those across an end of the window would be missing, and those are the long ones.
        # A chunk can carry several tokens, so each arrival counts as the stream's mean number of tokens.
        return sum(
            stream.num_tokens / len(stream.arrivals) * sum(start < arrival <= end for arrival in stream.arrivals)
            for stream in self.streams
        ) / (end - start)


async def run_batch(client: AsyncServerClient, bodies: Sequence[dict[str, Any]]) -> Batch:
    """Send all requests at once and wait for the last.

    Raises:
        SteerserveError: one of them fails; the others are cancelled.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(time_stream(client, body)) for body in bodies]
    except* SteerserveError as failures:
        raise failures.exceptions[0] from None
    return Batch(tuple(task.result() for task in tasks))


def percentiles(seconds: Iterable[float]) -> Percentiles:
    """Return the percentiles of at least one time, by nearest rank."""
    ordered = sorted(seconds)
    return Percentiles(*(ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000 for share in (0.5, 0.99)))

"""Streams that run at the same time, and what their timings say about the server."""

from __future__ import annotations

import asyncio
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.bench.stream import BenchError, StreamTiming, time_stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import httpx


@dataclass(frozen=True, slots=True)
class Percentiles:
    """The middle and the slow end of something, in milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that were sent together and have all finished."""

    streams: tuple[StreamTiming, ...]

    @property
    def tokens_per_s(self) -> float:
        """Return generated tokens over the whole time, reading of prompts included."""
        start = min(stream.sent for stream in self.streams)
        end = max(stream.arrivals[-1] for stream in self.streams)
        return sum(stream.num_tokens for stream in self.streams) / (end - start)

    @property
    def decode_window(self) -> tuple[float, float]:
        """Return when every stream generated: from the last first token to the first last one.

        No prompt is read then, and all rows are in the batch. It ends before it begins where the streams did not
        overlap, since the server has fewer slots.
        """
        return max(stream.arrivals[0] for stream in self.streams), min(stream.arrivals[-1] for stream in self.streams)

    @property
    def decode_gaps(self) -> list[float]:
        """Return the times between tokens in the decode window."""
        start, end = self.decode_window
        return [
            after - before
            for stream in self.streams
            for before, after in zip(stream.arrivals, stream.arrivals[1:], strict=False)
            if before >= start and after <= end
        ]

    @property
    def step_ms(self) -> float | None:
        """Return the median decode step, which one slow step does not move."""
        gaps = self.decode_gaps
        return statistics.median(gaps) * 1000 if gaps else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Return generated tokens a second in the decode window."""
        start, end = self.decode_window
        if end <= start:
            return None
        # Not from the gaps: those that reach over an end of the window would be missing, and they are the long ones.
        # Tokens that are ready at once come in one chunk.
        return sum(
            stream.num_tokens / len(stream.arrivals) * sum(start < arrival <= end for arrival in stream.arrivals)
            for stream in self.streams
        ) / (end - start)


async def run_batch(client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]]) -> Batch:
    """Send all requests at once and wait for the last.

    Raises:
        BenchError: one of them fails; the others are given up.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(time_stream(client, body)) for body in bodies]
    except* BenchError as failures:
        raise failures.exceptions[0] from None
    return Batch(tuple(task.result() for task in tasks))


def percentiles(seconds: Iterable[float]) -> Percentiles:
    """Return percentiles by nearest rank; there must be at least one time."""
    ordered = sorted(seconds)
    return Percentiles(*(ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000 for share in (0.5, 0.99)))

"""The measurements: throughput by concurrency, the price of edits, and whether the server stays awake."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from steerserve.bench.batch import Batch, Percentiles, percentiles, run_batch
from steerserve.bench.stream import BenchError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from steerserve.bench.workload import Workload

_HEALTH_INTERVAL_S = 0.02


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """What a number of concurrent streams got, each with the same number of edits."""

    concurrency: int
    edits: int
    tokens_per_s: float
    """Of the best repeat, prompts included."""
    decode_tokens_per_s: float | None
    """Of the best repeat, while all streams generated; None where they never did at the same time."""
    ttft_ms: Percentiles
    itl_ms: Percentiles


@dataclass(frozen=True, slots=True)
class StepCost:
    """The decode step of a full batch whose rows carry edits."""

    rows: str
    """`0`, `1` or `16` edits in every row, or `mixed`."""
    step_ms: float | None
    """Least of the repeats' medians."""
    ratio: float | None
    """Over the step without edits."""


class Bench:
    """Measures one server, which it neither starts nor changes."""

    def __init__(
        self, client: httpx.AsyncClient, workload: Workload, *, repeats: int, note: Callable[[str], None]
    ) -> None:
        """Keep the client; `note` is told what is measured now."""
        self._client = client
        self._workload = workload
        self._repeats = repeats
        self._note = note

    async def warm_up(self, concurrency: int, edits: Sequence[int]) -> None:
        """Run one batch that is not measured, so that nothing is done for the first time later."""
        self._note("warming up")
        await self._run([edits[row % len(edits)] for row in range(concurrency)])

    async def sweep(self, concurrencies: Sequence[int], edits: int) -> list[SweepPoint]:
        """Measure each concurrency, every row with `edits` edits."""
        points: list[SweepPoint] = []
        for concurrency in concurrencies:
            batches: list[Batch] = []
            for repeat in range(self._repeats):
                self._note(f"{concurrency} streams, {repeat + 1} of {self._repeats}")
                batches.append(await self._run([edits] * concurrency))
            points.append(_sweep_point(concurrency, edits, batches))
        return points

    async def step_costs(self, concurrency: int, edits: Sequence[int]) -> list[StepCost]:
        """Measure a decode step for each number of edits a row, and for rows that differ.

        The kinds take turns, so that a change of the machine's pace meets them all.
        """
        kinds = {str(number): [number] * concurrency for number in edits}
        if len(edits) > 1:
            kinds["mixed"] = [edits[row % len(edits)] for row in range(concurrency)]
        steps: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repeat in range(self._repeats):
            for kind, rows in kinds.items():
                self._note(f"step with edits: {kind}, {repeat + 1} of {self._repeats}")
                step_ms = (await self._run(rows)).step_ms
                if step_ms is not None:
                    steps[kind].append(step_ms)
        least = {kind: min(found, default=None) for kind, found in steps.items()}
        plain = least.get("0")
        return [StepCost(kind, step, step / plain if step and plain else None) for kind, step in least.items()]

    async def health(self, concurrency: int, edits: Sequence[int]) -> Percentiles:
        """Measure /health again and again while streams run."""
        self._note(f"/health beside {concurrency} streams")
        times: list[float] = []
        rows = [edits[row % len(edits)] for row in range(concurrency)]
        batch = asyncio.create_task(self._run(rows))
        try:
            while not batch.done():
                times.append(await self._time_health())
                await asyncio.sleep(_HEALTH_INTERVAL_S)
            await batch
        finally:
            batch.cancel()
        return percentiles(times)

    async def _time_health(self) -> float:
        start = time.perf_counter()
        try:
            response = await self._client.get("/health")
        except httpx.HTTPError as error:
            message = f"/health did not answer: {reason(error)}."
            raise BenchError(message) from error
        if response.is_error:
            message = f"/health answered {response.status_code} while streams ran."
            raise BenchError(message)
        return time.perf_counter() - start

    async def _run(self, edits_by_row: list[int]) -> Batch:
        return await run_batch(self._client, self._workload.batch(edits_by_row))


def _sweep_point(concurrency: int, edits: int, batches: Sequence[Batch]) -> SweepPoint:
    streams = [stream for batch in batches for stream in batch.streams]
    gaps = [gap for stream in streams for gap in stream.gaps]
    decode = [rate for batch in batches if (rate := batch.decode_tokens_per_s) is not None]
    return SweepPoint(
        concurrency=concurrency,
        edits=edits,
        tokens_per_s=max(batch.tokens_per_s for batch in batches),
        decode_tokens_per_s=max(decode, default=None),
        ttft_ms=percentiles(stream.arrivals[0] - stream.sent for stream in streams),
        itl_ms=percentiles(gaps or [0.0]),
    )

"""The measurements: throughput by number of streams, the cost of edits, and how fast /health answers meanwhile."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.bench.batch import Batch, Percentiles, percentiles, run_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from steerserve.bench.workload import Workload
    from steerserve.client.server_client import AsyncServerClient

_HEALTH_INTERVAL_S = 0.02


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """The speed of a number of concurrent streams, each with the same number of edits."""

    concurrency: int
    """Number of streams."""
    edits: int
    """Number of edits of each stream."""
    tokens_per_s: float
    """Generated tokens per second of the best repeat, the time for prompts included."""
    decode_tokens_per_s: float | None
    """Generated tokens per second of the best repeat while all streams generated; None if they never all did."""
    ttft_ms: Percentiles
    """Time from sending a request to its first token."""
    itl_ms: Percentiles
    """Time between neighbouring tokens of a stream."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """The duration of a decode step of a full batch whose rows carry edits."""

    rows: str
    """Number of edits in every row, such as `0`, `1` or `16`, or `mixed`."""
    step_ms: float | None
    """Least of the repeats' medians; None if the streams never all generated at the same time."""
    ratio: float | None
    """`step_ms` divided by that of the step without edits."""


class LoadTest:
    """Measures one server by its answers alone; neither starts nor changes it."""

    def __init__(
        self, client: AsyncServerClient, workload: Workload, *, repeats: int, note: Callable[[str], None]
    ) -> None:
        """Send the requests of `workload` through `client`; `note` is called with what is measured now."""
        self._client = client
        self._workload = workload
        self._repeats = repeats
        self._note = note

    async def warm_up(self, concurrency: int, edits: Sequence[int]) -> None:
        """Run one batch that is not measured, so that later ones do nothing for the first time."""
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

        The kinds take turns, so that a change of the machine's speed affects all of them.
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
        least = {kind: min(medians, default=None) for kind, medians in steps.items()}
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
        await self._client.get("/health")
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

"""The results of `steerserve bench`, as JSON and as tables in a terminal."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from steerserve.bench.batch import Percentiles
    from steerserve.bench.machine import Machine
    from steerserve.bench.measure import StepCost, SweepPoint
    from steerserve.bench.target import Target


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The results of one run of `steerserve bench`."""

    date: str
    """Start of the run in UTC, as ISO 8601."""
    target: Target
    """The measured server."""
    machine: Machine
    """The machine of the client, which is also the server's if the URL is a loopback address."""
    load_before: float | None
    """Load average before the run; None if the system does not report it."""
    load_after: float | None
    """Load average after the run; None if the system does not report it."""
    max_tokens: int
    """Number of tokens that each stream generated."""
    repeats: int
    """How often each batch ran."""
    seed: int
    """Seed of the prompts."""
    sweep: Sequence[SweepPoint]
    """Speed for each number of streams."""
    step_costs: Sequence[StepCost]
    """Duration of a decode step for each number of edits."""
    health_ms: Percentiles
    """Time for an answer of /health while the largest batch ran."""

    @property
    def speed_ups(self) -> dict[int, float]:
        """Tokens per second by number of streams, divided by those of a single stream; empty if none ran alone."""
        single = next((point.tokens_per_s for point in self.sweep if point.concurrency == 1), None)
        return {point.concurrency: point.tokens_per_s / single for point in self.sweep} if single else {}

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data, including `speed_ups`."""
        return {**dataclasses.asdict(self), "speed_ups": self.speed_ups}


def print_report(report: BenchReport, console: Console) -> None:
    """Print the tables."""
    target, machine = report.target, report.machine
    health = report.health_ms
    loads = f"load {report.load_before} before, {report.load_after} after"
    torch = target.version.get("torch", machine.torch)
    console.print(f"{target.model} at {target.url}, torch {torch}", soft_wrap=True)
    console.print(f"{machine.cpu}, {machine.cores} cores, {loads}", soft_wrap=True)
    if target.dictionary is None:
        console.print("The server has no dictionary, so no request carries edits.", soft_wrap=True)
    console.print(_sweep_table(report))
    console.print(_step_table(report))
    console.print(f"/health beside the largest batch: p50 {health.p50:.1f} ms, p99 {health.p99:.1f} ms")


def _sweep_table(report: BenchReport) -> Table:
    edits = report.sweep[0].edits if report.sweep else 0
    title = f"{report.max_tokens} tokens a stream, {edits} edits a stream, best of {report.repeats}"
    table = _table(title, "streams", "tokens/s", "of one", "decoding", "ttft p50", "p99", "itl p50", "p99")
    for point in report.sweep:
        speed_up = report.speed_ups.get(point.concurrency)
        table.add_row(
            str(point.concurrency),
            f"{point.tokens_per_s:.1f}",
            _number(speed_up, "{:.2f}x"),
            _number(point.decode_tokens_per_s, "{:.1f}"),
            *_both(point.ttft_ms),
            *_both(point.itl_ms),
        )
    return table


def _step_table(report: BenchReport) -> Table:
    top = max((point.concurrency for point in report.sweep), default=0)
    table = _table(f"decode step of {top} rows, least of {report.repeats}", "edits a row", "step", "against none")
    for cost in report.step_costs:
        change = (cost.ratio - 1) * 100 if cost.ratio is not None else None
        table.add_row(cost.rows, _number(cost.step_ms, "{:.1f} ms"), _number(change, "{:+.1f} %"))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE)
    for column in table.columns:
        column.justify = "right"
        column.no_wrap = True
    return table


def _both(times: Percentiles) -> Iterator[str]:
    yield f"{times.p50:.0f} ms"
    yield f"{times.p99:.0f} ms"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)

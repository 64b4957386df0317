"""The command `steerserve bench`."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerserve.commands.shared import DEFAULT_KEY_VARIABLE, DEFAULT_URL, KeyVariable, ServerUrl
from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.bench.report import BenchReport

_LARGEST_SEED = 1 << 32
_WIDTH = 120


def bench_command(
    url: ServerUrl = DEFAULT_URL,
    key_env: KeyVariable = DEFAULT_KEY_VARIABLE,
    concurrency: Annotated[str, typer.Option(help="Numbers of streams, separated by commas.")] = "1,2,4,8,16",
    tokens: Annotated[int, typer.Option(min=8, help="Number of tokens that each stream generates.")] = 64,
    edits: Annotated[str, typer.Option(help="Numbers of edits per stream, separated by commas.")] = "0,1,16",
    repeats: Annotated[int, typer.Option(min=1, help="How often each batch runs; the best run counts.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Seed of the prompts. Default: a new one each time.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the results to this JSON file.", show_default=False)
    ] = None,
) -> None:
    """Measure a running server: throughput by number of streams, latencies, and the cost of edits."""
    from rich.console import Console

    from steerserve.bench.report import print_report
    from steerserve.client.server_client import environment_key

    options = _Options(
        url=url,
        key=environment_key(os.environ, key_env),
        concurrencies=_numbers("--concurrency", concurrency, least=1),
        tokens=tokens,
        edits=_numbers("--edits", edits, least=0),
        repeats=repeats,
        seed=secrets.randbelow(_LARGEST_SEED) if seed is None else seed,
    )
    if json_file is not None:
        _check_writable(json_file)
    with Console(stderr=True).status("connecting") as status:
        report = asyncio.run(_measure(options, status.update))
    # Wide enough for the tables, whatever the width of the terminal, so that no number is cut off.
    print_report(report, Console(width=_WIDTH))
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Options:
    url: str
    key: str | None
    concurrencies: tuple[int, ...]
    tokens: int
    edits: tuple[int, ...]
    repeats: int
    seed: int


async def _measure(options: _Options, note: Callable[[str], None]) -> BenchReport:
    from steerserve.bench.machine import load_average, this_machine
    from steerserve.bench.measure import LoadTest
    from steerserve.bench.report import BenchReport
    from steerserve.bench.target import inspect
    from steerserve.bench.workload import Workload
    from steerserve.client.server_client import AsyncServerClient

    load_before = load_average()
    async with AsyncServerClient(options.url, options.key) as client:
        target = await inspect(client)
        edits = options.edits if target.dictionary is not None else (0,)
        workload = Workload(
            model=target.model, max_tokens=options.tokens, dictionary=target.dictionary, seed=options.seed
        )
        load_test = LoadTest(client, workload, repeats=options.repeats, note=note)
        top = max(options.concurrencies)
        await load_test.warm_up(top, edits)
        sweep_edits = next((number for number in edits if number), 0)
        return BenchReport(
            date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            target=target,
            machine=this_machine(),
            max_tokens=options.tokens,
            repeats=options.repeats,
            seed=options.seed,
            sweep=await load_test.sweep(options.concurrencies, sweep_edits),
            step_costs=await load_test.step_costs(top, edits),
            health_ms=await load_test.health(top, edits),
            load_before=load_before,
            load_after=load_average(),
        )


def _check_writable(file: Path) -> None:
    """Make the file's folder and check, before minutes of measuring, that the file can be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_new = not file.exists()
        file.open("a", encoding="utf-8").close()
        if is_new:
            file.unlink()
    except OSError as error:
        message = f"--json: {file} cannot be written: {error.strerror}."
        raise ConfigError(message) from error


def _numbers(flag: str, text: str, *, least: int) -> tuple[int, ...]:
    """Parse a list such as `1,2,4`; return its numbers in ascending order, each once."""
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < least:
        message = f"{flag}: {text!r} is not a list of whole numbers from {least} up, such as 1,2,4."
        raise ConfigError(message)
    return numbers

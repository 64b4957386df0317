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

from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.bench.report import Report

_LARGEST_SEED = 1 << 32
_WIDTH = 120


def bench_command(
    url: Annotated[str, typer.Option(help="The server to measure.")] = "http://127.0.0.1:8000",
    key_env: Annotated[
        str, typer.Option(help="The environment variable that holds the key, where the server wants one.")
    ] = "STEERSERVE_API_KEY",
    concurrency: Annotated[str, typer.Option(help="Numbers of streams.")] = "1,2,4,8,16",
    tokens: Annotated[int, typer.Option(min=8, help="Tokens that each stream generates.")] = 64,
    edits: Annotated[str, typer.Option(help="Numbers of edits a stream.")] = "0,1,16",
    repeats: Annotated[int, typer.Option(min=1, help="How often each batch is run; the best counts.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Of the prompts; a new one each time if not given.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.", show_default=False)] = None,
) -> None:
    """Measure a running server: throughput by number of streams, latencies, and what edits cost."""
    from rich.console import Console

    from steerserve.bench.report import print_report

    options = _Options(
        url=url,
        key=os.environ.get(key_env) or None,
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
    # Wide enough for the tables, whatever the terminal: a figure that is cut off is none.
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


async def _measure(options: _Options, note: Callable[[str], None]) -> Report:
    from steerserve.bench.machine import load_average, this_machine
    from steerserve.bench.measure import Bench
    from steerserve.bench.report import Report
    from steerserve.bench.target import connect, inspect
    from steerserve.bench.workload import Workload

    load_before = load_average()
    async with connect(options.url, options.key) as client:
        target = await inspect(client)
        edits = options.edits if target.dictionary is not None else (0,)
        workload = Workload(
            model=target.model, max_tokens=options.tokens, dictionary=target.dictionary, seed=options.seed
        )
        bench = Bench(client, workload, repeats=options.repeats, note=note)
        top = max(options.concurrencies)
        await bench.warm_up(top, edits)
        swept = next((number for number in edits if number), 0)
        return Report(
            date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            target=target,
            machine=this_machine(),
            max_tokens=options.tokens,
            repeats=options.repeats,
            seed=options.seed,
            sweep=await bench.sweep(options.concurrencies, swept),
            step_costs=await bench.step_costs(top, edits),
            health_ms=await bench.health(top, edits),
            load_before=load_before,
            load_after=load_average(),
        )


def _check_writable(file: Path) -> None:
    """Make the file's folder, and find out before minutes of measuring that the file cannot be written."""
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
    """Read `1,2,4`: numbers in growing order, each once."""
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < least:
        message = f"{flag}: {text!r} is no list of numbers from {least} up, such as 1,2,4."
        raise ConfigError(message)
    return numbers

"""The command `steerserve compare`: an experiment of prompts, arms and seeds, and its report."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from steerserve.commands.shared import environment_settings, print_table
from steerserve.commands.terminal import EXIT_STOPPED, followed_run
from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.client.server_client import AsyncServerClient
    from steerserve.core.config import Settings
    from steerserve.core.observer import Observer
    from steerserve.experiments.experiment import Experiment
    from steerserve.experiments.figures import Figures
    from steerserve.experiments.samples import ResultsFolder
    from steerserve.runtime import Runtime

_MAX_ATTEMPTS = 8
"""How often a comparison is sent to a server that is busy."""
RUNS_FOLDER = Path("runs")
_SHOWN = ("kl", "surprise", "repetition", "relevance")

Url = Annotated[
    str | None,
    typer.Option(help="URL of a running server; by default the model is loaded in this process.", show_default=False),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the results; runs/NAME by default.", show_default=False)]
Replace = Annotated[bool, typer.Option("--replace", help="Delete the folder's samples and start again.")]


def compare_command(
    file: Annotated[Path | None, typer.Argument(help="The experiment's YAML file.", show_default=False)] = None,
    url: Url = None,
    out: Out = None,
    *,
    replace: Replace = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write tables and report of the samples so far; load no model.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of experiments and exit.")] = False,
) -> None:
    """Run an experiment: prompts x arms x seeds, with a report to read.

    Every sample is kept at once. After a stop, the same command continues with the rest.
    """
    from steerserve.experiments.experiment import load_experiment

    if schema:
        from steerserve.experiments.schema import schema_text

        typer.echo(schema_text(), nl=False)
        return
    if file is None:
        raise ConfigError("Name the experiment's file, such as `steerserve compare experiments/ocean.yaml`.")
    experiment = load_experiment(file)
    run_and_report(experiment, url, out or RUNS_FOLDER / experiment.name, replace=replace, report_only=report_only)


def run_and_report(
    experiment: Experiment, url: str | None, out: Path, *, replace: bool = False, report_only: bool = False
) -> None:
    """Make the missing samples, have them judged if the experiment has a judge, and write tables and report.

    Raises:
        ConfigError: the experiment cannot be run.
    """
    from steerserve.core.lock import FileLock
    from steerserve.experiments.outputs import REPORT_FILE, write_outputs
    from steerserve.experiments.samples import ResultsFolder

    folder = ResultsFolder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        is_free = lock.acquire()
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}. Give another folder with --out.") from error
    if not is_free:
        raise ConfigError(f"Another command uses {out} now. Wait for it to end, or give another folder with --out.")
    with lock:
        run = folder.run() if report_only else _run(experiment, url, folder, replace=replace)
        if run is None:
            raise ConfigError(f"{out} has no samples yet. Leave out --report-only.")
        figures = write_outputs(experiment, folder, run)
        judge = experiment.content.judge
        if judge is not None and not report_only:
            _judge(experiment, folder)
            figures = write_outputs(experiment, folder, run)
    _show(figures)
    typer.echo(out / REPORT_FILE)


def command_line() -> str:
    """Return the command line for the report; keys are never part of it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _run(experiment: Experiment, url: str | None, folder: ResultsFolder, *, replace: bool) -> dict[str, Any]:
    from steerserve.experiments.runner import run_experiment

    with _followed() as observer, _server(url) as (client, weights):

        async def run() -> dict[str, Any]:
            try:
                return await run_experiment(
                    experiment, client, folder, observer, command=command_line(), weights=weights, replace=replace
                )
            finally:
                await client.close()

        return asyncio.run(run())


def _judge(experiment: Experiment, folder: ResultsFolder) -> None:
    from steerserve.experiments.judge import find_pairs, judge_pairs
    from steerserve.experiments.outputs import planned_records

    judge = experiment.content.judge
    if judge is None:
        return
    arms = [arm.name for arm in experiment.content.arms]
    pairs = find_pairs(planned_records(experiment, folder), arms)
    with _followed() as observer:
        asyncio.run(judge_pairs(judge, pairs, folder.path, os.environ.get(judge.key_env) or None, observer))


@contextlib.contextmanager
def _followed() -> Iterator[Observer]:
    """Show a run on the terminal; Ctrl-C ends it after the present step, a second Ctrl-C at once."""
    logging.getLogger("steerserve.server").setLevel(logging.WARNING)  # a server in this process logs every request
    try:
        with followed_run() as observer:
            yield observer
    except KeyboardInterrupt as interrupt:
        typer.echo("Stopped at once. Earlier results are kept; run the same command to continue.", err=True)
        raise typer.Exit(EXIT_STOPPED) from interrupt


@contextlib.contextmanager
def _server(url: str | None) -> Iterator[tuple[AsyncServerClient, str | None]]:
    """Give a client of the server at `url`, or of one in this process, and the SHA-256 of the weights if known."""
    from steerserve.client.server_client import AsyncServerClient, environment_key

    if url is not None:
        key = environment_key(os.environ)
        # A comparison takes minutes on a busy CPU, and the server sends nothing before it ends.
        yield AsyncServerClient(url, key, max_attempts=_MAX_ATTEMPTS, read_timeout_s=None), None
        return
    from steerserve.model.download import BUILTIN_MODELS
    from steerserve.server.app import create_app

    settings = environment_settings()
    with _loaded_model(settings) as runtime:
        keys = (*settings.server.api_keys, *settings.server.admin_keys)
        builtin = BUILTIN_MODELS.get(settings.model.source)
        key = keys[0].get_secret_value() if keys else None
        client = AsyncServerClient.inside(create_app(runtime), key, max_attempts=_MAX_ATTEMPTS)
        yield client, builtin.sha256 if builtin is not None else None


@contextlib.contextmanager
def _loaded_model(settings: Settings) -> Iterator[Runtime]:
    """Load the model, and keep its engine running until the context ends; no jobs run.

    Raises:
        StartupError: the model or a dictionary cannot be used.
    """
    from steerserve.runtime import build_runtime

    runtime = build_runtime(settings)
    try:
        runtime.start(with_jobs=False)
        yield runtime
    finally:
        runtime.stop()


def _show(figures: Figures) -> None:
    """Print each arm's most important metrics; the report has all."""
    shown = [metric for metric in figures.metrics if metric.name in _SHOWN or "/" in metric.name]
    table = Table("arm", "texts", *(metric.title for metric in shown), box=None)
    for arm in figures.arms:
        cells = []
        for metric in shown:
            cell = figures.cell(arm, metric.name)
            mean = f"{cell.mean.mean:.{metric.digits}f}" if cell.mean is not None else "n/a"
            low, high = (cell.difference.low, cell.difference.high) if cell.difference is not None else (None, None)
            interval = f" ({low:+.{metric.digits}f} to {high:+.{metric.digits}f})" if None not in {low, high} else ""
            cells.append(mean + interval)
        table.add_row(escape(arm), str(figures.num_samples[arm]), *cells)
    print_table(table)
    typer.echo(f"In brackets: the difference from {figures.arms[0]!r}, 95 % interval.")

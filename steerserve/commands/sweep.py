"""The command `steerserve sweep`: the effect of one feature or preset at several strengths."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from steerserve.commands.compare import RUNS_FOLDER, Out, Replace, Url, run_and_report
from steerserve.core.errors import ConfigError

EXPERIMENT_FILE = "experiment.yaml"


def sweep_command(
    target: Annotated[
        str,
        typer.Argument(metavar="FEATURE|PRESET", help="3857, res17/3857 or a preset's name.", show_default=False),
    ],
    scales: Annotated[
        str, typer.Option(help="UnitValues, separated by commas; they multiply a preset's strength.")
    ] = "0,0.5,1,1.5,2",
    unit: Annotated[Literal["raw", "max", "norm", "dose"], typer.Option(help="Unit of a feature's scales.")] = "dose",
    mode: Annotated[
        Literal["add", "clamp", "multiply", "floor", "ceiling"], typer.Option(help="Mode of a feature's edit.")
    ] = "add",
    positions: Annotated[
        Literal["all", "prompt", "generated"], typer.Option(help="Which tokens are edited.")
    ] = "generated",
    prompt: Annotated[
        list[str] | None, typer.Option(help="A message of the user. Repeatable; four everyday prompts by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Number of seeds for each prompt.")] = 2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Largest number of generated tokens.")] = 48,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Temperature; 0 is greedy.")] = 0.7,
    control: Annotated[
        Literal["none", "largest", "each"], typer.Option(help="Which scales get a control along a random direction.")
    ] = "largest",
    url: Url = None,
    out: Out = None,
    *,
    replace: Replace = False,
) -> None:
    """Measure the effect of a feature or preset at several strengths: writes an experiment and runs it."""
    from steerserve.core.files import write_text
    from steerserve.experiments.experiment import parse_experiment
    from steerserve.experiments.sweep import DEFAULT_PROMPTS, Sweep, sweep_file

    sweep = Sweep(
        target,
        _numbers(scales),
        unit=unit,
        mode=mode,
        positions=positions,
        prompts=tuple(prompt) if prompt else DEFAULT_PROMPTS,
        num_seeds=seeds,
        max_tokens=max_tokens,
        temperature=temperature,
        controls=control,
    )
    folder = out or RUNS_FOLDER / sweep.name
    file = folder / EXPERIMENT_FILE
    text = sweep_file(sweep, folder)
    experiment = parse_experiment(text, file=str(file))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}. Give another folder with --out.") from error
    typer.echo(file)
    run_and_report(experiment, url, folder, replace=replace)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--scales must be numbers separated by commas, such as 0.5,1,2, not {text!r}.") from error

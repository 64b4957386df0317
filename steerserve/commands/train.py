"""The command `steerserve train`. Heavy modules are imported when it runs, so that `steerserve --help` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from steerserve.commands.terminal import (
    BackendName,
    ContextSize,
    CorpusSources,
    DeviceName,
    ModelName,
    ProcessWeights,
    Threads,
    followed_run,
)
from steerserve.core.config import DEFAULT_MODEL
from steerserve.core.errors import ConfigError
from steerserve.core.files import read_json
from steerserve.core.literals import ARCHITECTURES, SAVED_DTYPES, STORAGES, Storage
from steerserve.training.options import DEFAULT_HOOK, DEFAULT_RESAMPLE, Grid, TrainOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.core.config import Backend

_LEAST_RECOVERED = 0.9
_LEAST_EXPLAINED = 0.6
"""Least figures of a dictionary whose features steer well."""


def train_command(
    dictionary_id: Annotated[str, typer.Option("--id", help="The dictionary's name.")],
    corpus: CorpusSources,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result; dictionaries/ID if not given.", show_default=False)
    ] = None,
    model: ModelName = DEFAULT_MODEL,
    hook: Annotated[
        list[str] | None,
        typer.Option(help=f"Hook point; {DEFAULT_HOOK} if not given. Repeat it to train a dictionary at each."),
    ] = None,
    architecture: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = "batchtopk",
    d_sae: Annotated[
        list[int] | None, typer.Option(help="Number of features; 4096 if not given. Repeat it to train several widths.")
    ] = None,
    k: Annotated[int, typer.Option(help="Number of active features a token (TopK family, matching pursuit).")] = 32,
    l1_coefficient: Annotated[
        float | None,
        typer.Option(help="Weight of the sparsity penalty (standard, gated, jumprelu); 5 if not given."),
    ] = None,
    resample: Annotated[
        str | None,
        typer.Option(
            metavar="on|off|SHARES",
            help="When dead features are resampled: shares of the run such as 0.25,0.5, on for "
            f"{','.join(map(str, DEFAULT_RESAMPLE))}, or off. On for standard and gated if not given.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Number of tokens to train on.")] = 1_000_000,
    epochs: Annotated[
        int | None,
        typer.Option(help="Times that each token is used; 6 if not given (3 below 200,000 tokens, 1 with a buffer)."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Tokens a step; 2048 if not given, or fewer (at least 512) in a short run.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 8e-4,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights, the order of tokens and resampling.")] = 0,
    context_size: ContextSize = 128,
    dtype: Annotated[
        str, typer.Option(help=f"Number format of the saved weights: {' or '.join(SAVED_DTYPES)}.")
    ] = "float32",
    device: DeviceName = "auto",
    storage: Annotated[
        str,
        typer.Option(help=f"{' or '.join(STORAGES)}: keep all activations on disk, or some of them in memory."),
    ] = "disk",
    buffer_mb: Annotated[int, typer.Option(help="Megabytes of memory for --storage buffer.")] = 512,
    backend: BackendName = "bridge",
    threads: Threads = None,
    *,
    process_weights: ProcessWeights = True,
    keep_run: Annotated[
        bool, typer.Option("--keep-run", help="Keep cached activations and checkpoints (OUT/run) after the run.")
    ] = False,
) -> None:
    """Train a dictionary (a sparse autoencoder) on a model's activations, and report how much of the model it keeps.

    Several hook points or widths are trained in one pass over the text. If the command is stopped, the same command
    resumes the run.
    """
    shared: dict[str, Any] = {
        "architecture": architecture,
        "k": k,
        "l1_coefficient": l1_coefficient,
        "lr": lr,
        "resample": _shares(resample),
        "dtype": dtype,
    }
    options = TrainOptions(
        out=out or Path("dictionaries") / dictionary_id,
        corpus=tuple(corpus),
        dictionaries=Grid(dictionary_id, hook or [DEFAULT_HOOK], d_sae or [4096], shared).dictionaries(),
        model=model,
        tokens=tokens,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        context_size=context_size,
        device=device,
        backend=cast("Backend", backend),
        process_weights=process_weights,
        storage=cast("Storage", storage),
        buffer_mb=buffer_mb,
        keep_run=keep_run,
    )
    from steerserve.jobs.work import prepare_and_train

    with followed_run(threads) as observer:
        folders = prepare_and_train(options, observer)
    for line in _closing_lines(options, folders):
        typer.echo(line)


def _closing_lines(options: TrainOptions, folders: Sequence[Path]) -> list[str]:
    """Return the figures of the dictionaries, advice if they are low, and the command that serves the dictionaries."""
    lines = []
    is_weak = False
    for folder in folders:
        report = read_json(folder / "report.json")
        recovered, explained = report["ce_recovered"], report["explained_variance"]
        shares = f"dead {report['dead_fraction']:.1%}, dense {report['dense_fraction']:.1%}"
        figures = f"CE recovered {recovered:.3f}, explained variance {explained:.3f}, L0 {report['l0']:.1f}, {shares}"
        lines.append(f"{folder}: {figures} (more in report.html)")
        is_weak |= recovered < _LEAST_RECOVERED or explained < _LEAST_EXPLAINED
    if is_weak:
        lines.append("These figures are too low to steer well. Train on more text (--corpus, --tokens, --epochs).")
    model = "" if options.model == DEFAULT_MODEL else f" --model {options.model}"
    flags = "".join(
        f" --dictionary {dictionary.id}=path:{folder}"
        for dictionary, folder in zip(options.dictionaries, folders, strict=True)
    )
    return [*lines, f"Serve it with: steerserve serve{model}{flags}"]


def _shares(text: str | None) -> tuple[float, ...] | None:
    if text is None or text in {"on", "off"}:
        return {None: None, "on": DEFAULT_RESAMPLE, "off": ()}[text]
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError as error:
        message = f"resample is {text!r}; it must be on, off or shares of the run such as 0.25,0.5."
        raise ConfigError(message, param="resample") from error

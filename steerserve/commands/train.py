"""The command `steerserve train`. Nothing heavy is imported before it runs, so that `steerserve --help` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from steerserve.commands.terminal import BackendName, ProcessWeights, Threads, followed_run
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
"""Below these a dictionary's features steer badly, or not at all."""


def train_command(
    dictionary_id: Annotated[str, typer.Option("--id", help="The dictionary's name.")],
    corpus: Annotated[
        list[str],
        typer.Option(
            "--corpus",
            help="Text to train on: a folder or a .txt, .md or .jsonl file "
            '({"text": ...} or {"messages": [...]} a line), hf:NAME for a Hugging Face dataset, or self for '
            "conversations that the model writes. Repeatable.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result; dictionaries/ID if not given.", show_default=False)
    ] = None,
    model: Annotated[
        str, typer.Option(help="A built-in name, a hub repository, a folder or a .gguf file.")
    ] = DEFAULT_MODEL,
    hook: Annotated[
        list[str] | None,
        typer.Option(help=f"Hook point; {DEFAULT_HOOK} if not given. Repeat it for a dictionary at each."),
    ] = None,
    architecture: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = "batchtopk",
    d_sae: Annotated[
        list[int] | None, typer.Option(help="Number of features; 4096 if not given. Repeat it for several widths.")
    ] = None,
    k: Annotated[int, typer.Option(help="Active features a token (the TopK family and matching pursuit).")] = 32,
    l1_coefficient: Annotated[
        float | None,
        typer.Option(help="Weight of the sparsity penalty (standard, gated, jumprelu); 5 if not given."),
    ] = None,
    resample: Annotated[
        str | None,
        typer.Option(
            metavar="on|off|SHARES",
            help="When dead features begin anew: shares of the run such as 0.25,0.5, on for "
            f"{','.join(map(str, DEFAULT_RESAMPLE))}, or off. On for standard and gated if not given.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of text that are used.")] = 1_000_000,
    epochs: Annotated[
        int | None,
        typer.Option(help="How often each token is seen; 6 if not given (3 below 200,000 tokens, 1 with a buffer)."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Tokens a step; 2048 if not given, down to 512 in a short run.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 8e-4,
    seed: Annotated[int, typer.Option(help="Of the first weights, the order of tokens and resampling.")] = 0,
    context_size: Annotated[int, typer.Option(help="Tokens a window of text.")] = 128,
    dtype: Annotated[str, typer.Option(help=f"Of the saved weights: {' or '.join(SAVED_DTYPES)}.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    storage: Annotated[
        str,
        typer.Option(
            help=f"{' or '.join(STORAGES)}: keep the whole text's activations on disk, or some of them in memory."
        ),
    ] = "disk",
    buffer_mb: Annotated[int, typer.Option(help="Memory for --storage buffer.")] = 512,
    backend: BackendName = "bridge",
    threads: Threads = None,
    *,
    process_weights: ProcessWeights = True,
    keep_run: Annotated[
        bool, typer.Option("--keep-run", help="Keep cached activations and checkpoints (OUT/run) when done.")
    ] = False,
) -> None:
    """Train a dictionary (a sparse autoencoder) on a model's activations, and report what it keeps of the model.

    Several hook points or widths are trained in one pass over the text. Stop it whenever you like: the same command
    goes on where it was.
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
    from steerserve.jobs.training import train_from_anywhere

    with followed_run(threads) as observer:
        folders = train_from_anywhere(options, observer)
    for line in _closing_lines(options, folders):
        typer.echo(line)


def _closing_lines(options: TrainOptions, folders: Sequence[Path]) -> list[str]:
    """Say how good the dictionaries are, whether that is good enough, and how to serve them."""
    lines = []
    is_weak = False
    for folder in folders:
        report = read_json(folder / "report.json")
        recovered, explained = report["ce_recovered"], report["explained_variance"]
        shares = f"dead {report['dead_fraction']:.1%}, dense {report['dense_fraction']:.1%}"
        figures = f"CE recovered {recovered:.3f}, explained variance {explained:.3f}, L0 {report['l0']:.1f}, {shares}"
        lines.append(f"{folder}: {figures} (report.html says more)")
        is_weak |= recovered < _LEAST_RECOVERED or explained < _LEAST_EXPLAINED
    if is_weak:
        lines.append("That is too little to steer well: train on more text (--corpus, --tokens) or longer (--epochs).")
    model = "" if options.model == DEFAULT_MODEL else f" --model {options.model}"
    flags = "".join(
        f" --dictionary {one.id}=path:{folder}" for one, folder in zip(options.dictionaries, folders, strict=True)
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

"""The command `steerserve train`. Imports nothing heavy before it runs, so that `steerserve --help` stays quick."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from steerserve.core.config import DEFAULT_MODEL
from steerserve.core.errors import ConfigError
from steerserve.training.options import ARCHITECTURES, SAVED_DTYPES, Architecture, SavedDtype, TrainOptions

_LEAST_RECOVERED = 0.9
_LEAST_EXPLAINED = 0.6
"""Below these a dictionary's features steer badly, or not at all."""


def train_command(
    dictionary_id: Annotated[str, typer.Option("--id", help="The dictionary's name.")],
    corpus: Annotated[
        list[Path],
        typer.Option(
            "--corpus",
            help="Text to train on: a folder or a .txt, .md or .jsonl file "
            '({"text": ...} or {"messages": [...]} a line). Repeatable.',
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result; dictionaries/ID if not given.", show_default=False)
    ] = None,
    model: Annotated[
        str, typer.Option(help="A built-in name, a hub repository, a folder or a .gguf file.")
    ] = DEFAULT_MODEL,
    hook: Annotated[str, typer.Option(help="Hook point: blocks.N.hook_resid_post.")] = "blocks.17.hook_resid_post",
    architecture: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = "batchtopk",
    d_sae: Annotated[int, typer.Option(help="Number of features.")] = 4096,
    k: Annotated[int, typer.Option(help="Active features a token (batchtopk and topk).")] = 32,
    l1_coefficient: Annotated[
        float | None,
        typer.Option(help="Weight of the sparsity penalty (standard, gated, jumprelu); 5 if not given."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens whose activations are kept on disk.")] = 1_000_000,
    epochs: Annotated[int, typer.Option(help="How often each token is seen.")] = 6,
    batch_size: Annotated[int, typer.Option(help="Tokens a step.")] = 2048,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 8e-4,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of tokens.")] = 0,
    context_size: Annotated[int, typer.Option(help="Tokens a window of text.")] = 128,
    dtype: Annotated[str, typer.Option(help=f"Of the saved weights: {' or '.join(SAVED_DTYPES)}.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; as many as PyTorch likes if not given.", min=1)
    ] = None,
    *,
    keep_run: Annotated[
        bool, typer.Option("--keep-run", help="Keep cached activations and checkpoints (OUT/run) when done.")
    ] = False,
) -> None:
    """Train a dictionary (a sparse autoencoder) on a model's residual stream, and report what it keeps of the model.

    Stop it whenever you like: the same command goes on where it was.
    """
    options = TrainOptions(
        id=dictionary_id,
        out=out or Path("dictionaries") / dictionary_id,
        corpus=tuple(corpus),
        model=model,
        hook=hook,
        architecture=_architecture(architecture),
        d_sae=d_sae,
        k=k,
        l1_coefficient=l1_coefficient,
        tokens=tokens,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        context_size=context_size,
        dtype=_dtype(dtype),
        device=device,
        keep_run=keep_run,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # What the libraries below log at INFO is about themselves.
    for chatty in ("transformer_lens", "sae_lens", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    import torch

    from steerserve.training.run import train

    if threads is not None:
        torch.set_num_threads(threads)
    folder = train(options)
    for line in _closing_lines(options, folder):
        typer.echo(line)


def _closing_lines(options: TrainOptions, folder: Path) -> list[str]:
    """Say how good the dictionary is, whether that is good enough, and how to serve it."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    recovered, explained = report["ce_recovered"], report["explained_variance"]
    shares = f"dead {report['dead_fraction']:.1%}, dense {report['dense_fraction']:.1%}"
    figures = f"CE recovered {recovered:.3f}, explained variance {explained:.3f}, L0 {report['l0']:.1f}, {shares}"
    lines = [f"{folder}: {figures} (report.json says more)"]
    if recovered < _LEAST_RECOVERED or explained < _LEAST_EXPLAINED:
        lines.append("That is too little to steer well: train on more text (--corpus, --tokens) or longer (--epochs).")
    model = "" if options.model == DEFAULT_MODEL else f" --model {options.model}"
    return [*lines, f"Serve it with: steerserve serve{model} --dictionary {options.id}=path:{folder}"]


def _architecture(name: str) -> Architecture:
    for known in ARCHITECTURES:
        if known == name:
            return known
    message = f"architecture is {name!r}; it must be one of {', '.join(ARCHITECTURES)}."
    raise ConfigError(message, param="architecture")


def _dtype(name: str) -> SavedDtype:
    for known in SAVED_DTYPES:
        if known == name:
            return known
    message = f"dtype is {name!r}; it must be one of {', '.join(SAVED_DTYPES)}."
    raise ConfigError(message, param="dtype")

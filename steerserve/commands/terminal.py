"""Runs that a command follows in the terminal: their shared options, plain log lines, progress, and Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Annotated

import typer

from steerserve.core.observer import StoppedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.core.terminal import TerminalObserver

EXIT_STOPPED = 130
"""Exit code after Ctrl-C, as shells report it."""
_CHATTY = ("transformer_lens", "sae_lens", "httpx", "datasets")
"""Libraries whose log lines at INFO say nothing about the run."""

CorpusSources = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        help='Text: a folder or a .txt, .md or .jsonl file ({"text": ...} or {"messages": [...]} a line), hf:NAME for '
        "a Hugging Face data set, sample for the sample corpus, or self for conversations that the model writes. "
        "Repeatable.",
    ),
]
ModelName = Annotated[str, typer.Option("--model", help="A built-in name, a hub repository, a folder or a .gguf file.")]
ContextSize = Annotated[int, typer.Option("--context-size", help="Number of tokens in a context window of the text.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BackendName = Annotated[str, typer.Option("--backend", help="What runs the model: bridge or hooked_transformer.")]
ProcessWeights = Annotated[
    bool,
    typer.Option(
        "--process-weights/--no-process-weights",
        help="With hooked_transformer: fold norms into weights and centre them.",
    ),
]
Threads = Annotated[int | None, typer.Option(help="Number of CPU threads; PyTorch's default if not given.", min=1)]


@contextlib.contextmanager
def followed_run(threads: int | None = None) -> Iterator[TerminalObserver]:
    """Give the observer of a run; if Ctrl-C stops the run, the command ends with one line and exit code 130."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    from steerserve.core.terminal import TerminalObserver

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        with TerminalObserver() as observer:
            yield observer
    except StoppedError as stopped:
        typer.echo(stopped.message, err=True)
        raise typer.Exit(EXIT_STOPPED) from stopped

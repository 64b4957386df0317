"""A long run in a terminal: plain lines of log, CPU threads, progress, and what Ctrl-C comes to."""

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
"""As a shell reports Ctrl-C."""
_CHATTY = ("transformer_lens", "sae_lens", "httpx", "datasets")
"""Libraries that log at INFO what is about themselves."""

BackendName = Annotated[str, typer.Option("--backend", help="What runs the model: bridge or hooked_transformer.")]
ProcessWeights = Annotated[
    bool,
    typer.Option(
        "--process-weights/--no-process-weights",
        help="With hooked_transformer: fold norms into weights and centre them.",
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; as many as PyTorch likes if not given.", min=1)]


@contextlib.contextmanager
def followed_run(threads: int | None = None) -> Iterator[TerminalObserver]:
    """Give the observer of a run; a run that Ctrl-C stopped ends the command with one line and exit code 130."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
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

"""The `steerserve` command. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from steerserve.commands.bench import bench_command
from steerserve.commands.compare import compare_command
from steerserve.commands.corpus import corpus_app
from steerserve.commands.dictionaries import dictionaries_app
from steerserve.commands.features import features_app
from steerserve.commands.interpret import interpret_command
from steerserve.commands.models import models_app, version_command
from steerserve.commands.presets import presets_app
from steerserve.commands.serve import serve_command
from steerserve.commands.sweep import sweep_command
from steerserve.commands.train import train_command
from steerserve.commands.vectors import vectors_app
from steerserve.commands.watch import watch_command
from steerserve.core.errors import StartupError
from steerserve.core.process import limit_spinning

EXIT_STARTUP = 2
_HELP = "Serve a language model whose requests steer features of its sparse autoencoders."
_GROUPS = {
    "models": models_app,
    "dictionaries": dictionaries_app,
    "features": features_app,
    "corpus": corpus_app,
    "vectors": vectors_app,
    "presets": presets_app,
}
_COMMANDS: dict[str, Callable[..., None]] = {
    "serve": serve_command,
    "version": version_command,
    "compare": compare_command,
    "sweep": sweep_command,
    "train": train_command,
    "interpret": interpret_command,
    "bench": bench_command,
    "watch": watch_command,
}

app = typer.Typer(name="steerserve", help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)
for _name, _group in _GROUPS.items():
    app.add_typer(_group, name=_name)
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Run the command line; an error at the start becomes one line on stderr and exit code 2."""
    limit_spinning(os.environ)
    try:
        app()
    except StartupError as error:
        typer.echo(f"steerserve: {error.message}", err=True)
        sys.exit(EXIT_STARTUP)

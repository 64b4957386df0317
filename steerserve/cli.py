"""The `steerserve` command. Its commands import slow modules only when they run, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer
from typer.core import TyperGroup

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
from steerserve.core.errors import SteerserveError
from steerserve.core.process import limit_spinning

EXIT_ERROR = 2
_HELP = "Serve a language model whose requests steer features of its sparse autoencoders."
_PANELS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Serve and look": {
        "serve": serve_command,
        "watch": watch_command,
        "models": models_app,
        "version": version_command,
    },
    "Steer": {
        "presets": presets_app,
        "vectors": vectors_app,
        "dictionaries": dictionaries_app,
        "features": features_app,
    },
    "Measure": {"compare": compare_command, "sweep": sweep_command, "bench": bench_command},
    "Train dictionaries": {"train": train_command, "interpret": interpret_command, "corpus": corpus_app},
}
"""The commands by the panel of `steerserve --help` that lists them."""


class _InOrder(TyperGroup):
    """Lists commands and groups together in the order in which they were added, which typer does not keep."""

    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002 the base class' parameter
        return [name for panel in _PANELS.values() for name in panel]


app = typer.Typer(name="steerserve", cls=_InOrder, help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)
for _panel, _entries in _PANELS.items():
    for _name, _entry in _entries.items():
        if isinstance(_entry, typer.Typer):
            app.add_typer(_entry, name=_name, rich_help_panel=_panel)
        else:
            app.command(_name, rich_help_panel=_panel)(_entry)


def main() -> None:
    """Run the command line; an error that steerserve raises on purpose becomes one line on stderr and exit code 2."""
    limit_spinning(os.environ)
    try:
        app()
    except SteerserveError as error:
        typer.echo(f"steerserve: {error.message}", err=True)
        sys.exit(EXIT_ERROR)

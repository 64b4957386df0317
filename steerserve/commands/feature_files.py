"""The commands `steerserve features export` and `import`. Nothing heavy is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerserve.commands.feature_store import DictionarySource, find_dictionary
from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.store.records import Label


def export_command(
    source: DictionarySource,
    out: Annotated[
        Path | None, typer.Option(help="File to write; standard output if not given.", show_default=False)
    ] = None,
    store_file: Annotated[
        Path | None,
        typer.Option("--store", help="Copy the whole store to this file instead, as it is now.", show_default=False),
    ] = None,
) -> None:
    """Write everything that is stored as JSON Lines, one object for each feature, or copy the whole store."""
    from steerserve.store.export import export_lines
    from steerserve.store.placement import copy_store

    store = find_dictionary(source).store()
    if store_file is not None:
        if out is not None:
            message = "Lines (--out) and the whole store (--store) are two exports; give one of them."
            raise ConfigError(message, param="store")
        try:
            copy_store(store.path, store_file)
        except FileExistsError as error:
            message = f"{store_file} exists already."
            raise ConfigError(message, param="store") from error
        return
    if out is None:
        for line in export_lines(store):
            typer.echo(line)
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in export_lines(store))
    except OSError as error:
        message = f"{out} cannot be written: {error.strerror}."
        raise ConfigError(message, param="out") from error


def import_command(
    source: DictionarySource,
    file: Annotated[
        Path, typer.Argument(help="Exported lines, an exported store, or labels of Neuronpedia.", show_default=False)
    ],
    *,
    neuronpedia: Annotated[
        bool, typer.Option("--neuronpedia", help="The file holds Neuronpedia's explanations.")
    ] = False,
) -> None:
    """Import a whole store, or labels: exported lines, lines as {"feature": 7, "label": "bridges"}, or Neuronpedia's.

    A label replaces an older one of the same origin, never a newer one. All labels of a file are imported, or none.
    """
    from steerserve.store.export import is_store, read_labels
    from steerserve.store.neuronpedia import read_neuronpedia

    dictionary = find_dictionary(source)
    if not neuronpedia and is_store(file):
        path = dictionary.location.import_store(file)
        typer.echo(f"{path}: imported {file} and kept the labels that were here")
        return
    labels: Mapping[int, Sequence[Label]]
    if neuronpedia:
        labels = {feature: [label] for feature, label in read_neuronpedia(file, dictionary.d_sae).items()}
    else:
        labels = read_labels(file, dictionary.d_sae)
    store = dictionary.writable_store()
    num_labelled = store.take_newer_labels(labels)
    typer.echo(f"{store.path}: labels of {num_labelled} features imported from {file}")
    if num_labelled < len(labels):
        typer.echo(f"The other {len(labels) - num_labelled} have labels that are as new, or newer.")

"""The commands `steerserve presets ...`; heavy imports wait until a command runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from steerserve.commands.shared import environment_settings, print_table
from steerserve.core.errors import ConfigError, PresetError, SteerserveError
from steerserve.core.literals import MIN_TEXTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.api.model import SteeredModel
    from steerserve.presets.library import PresetLibrary, PresetSnapshot
    from steerserve.presets.preset import Preset
    from steerserve.requests.preset_making import MadePreset

EXIT_FAILED = 1
_SHOWN_CHARS = 60

Name = Annotated[str, typer.Argument(help="The preset's name.", show_default=False)]

presets_app = typer.Typer(help="List, check, test and make presets.", no_args_is_help=True)


@presets_app.command("list")
def presets_list() -> None:
    """List the presets that a server would have, including broken ones."""
    snapshot = _library().snapshot()
    table = Table("name", "version", "model", "edits", "checks", "from", "description", box=None)
    for name in sorted({*snapshot.presets, *snapshot.broken}):
        origin = "steerserve" if name in snapshot.bundled else "folder"
        problem = snapshot.broken.get(name)
        if (preset := snapshot.presets.get(name)) is None:
            table.add_row(escape(name), "", "", "", "", origin, escape(f"cannot be used: {problem}"))
            continue
        content = preset.content
        description = f"the file cannot be used now: {problem}" if problem is not None else content.description
        counts = (str(len(content.edits)), str(len(content.checks)))
        table.add_row(name, str(content.version), content.model or "any", *counts, origin, escape(description))
    print_table(table)


@presets_app.command("show")
def presets_show(
    name: Name,
    *,
    previous: Annotated[bool, typer.Option("--previous", help="Print the previous version.")] = False,
) -> None:
    """Print a preset's file."""
    library = _library()
    text = library.previous(name) if previous else library.text(name)
    if text is None and previous:
        raise PresetError(f"No previous version of the preset {name!r} is kept.", param="name")
    if text is None:
        raise PresetError(library.snapshot().unknown(name).message, param="name")
    typer.echo(text, nl=False)


@presets_app.command("check")
def presets_check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files to check; by default all that a server would read.", show_default=False),
    ] = None,
) -> None:
    """Check preset files; problems are printed as file:line:column, and the exit code is then 1."""
    if files:
        problems = [problem for file in files if (problem := _problem(file)) is not None]
        num_good = len(files) - len(problems)
    else:
        library = _library()
        snapshot = library.snapshot()
        problems = [str(library.folder / problem) for problem in snapshot.broken.values()]
        num_good = len(snapshot.presets.keys() - snapshot.broken.keys())
    for problem in problems:
        typer.echo(problem, err=True)
    typer.echo(f"{num_good} good, {len(problems)} broken")
    if problems:
        raise typer.Exit(EXIT_FAILED)


@presets_app.command("test")
def presets_test(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of presets; all by default.", show_default=False)
    ] = None,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the generated texts too.")] = False,
) -> None:
    """Load the model and run the checks of presets; the exit code is 1 if one fails."""
    table = Table("preset", "prompt", "requirement", "result", "ok", box=None)
    with _model() as model:
        is_ok = _run_checks(model, names or [], table, verbose=verbose)
    print_table(table)
    if not is_ok:
        raise typer.Exit(EXIT_FAILED)


@presets_app.command("new")
def presets_new(
    name: Name,
    positive: Annotated[
        Path, typer.Option(help="File of texts that the preset steers to, one a line.", show_default=False)
    ],
    negative: Annotated[
        Path, typer.Option(help="File of texts that it steers away from, one a line.", show_default=False)
    ],
    dictionary: Annotated[
        str | None, typer.Option(help="Dictionary id; the default dictionary if absent.", show_default=False)
    ] = None,
    max_edits: Annotated[int, typer.Option(min=1, max=16, help="Largest number of edited features.")] = 3,
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a preset of the same name.")] = False,
) -> None:
    """Make a preset of the features that tell two files of texts apart."""
    from steerserve.presets.library import check_name
    from steerserve.presets.preset import SUFFIX, parse_preset

    library = _library()
    if not replace and (library.folder / f"{name}{SUFFIX}").exists():
        message = f"The preset {name!r} exists already. Choose another name, or give --replace."
        raise PresetError(message, param="name")
    texts, opposite_texts = _texts(positive), _texts(negative)
    try:
        check_name(name)
        with _model() as model:
            made = model.make_preset(
                name,
                texts,
                opposite_texts,
                dictionary=dictionary,
                max_edits=max_edits,
                description=f"From the texts of {negative.name} to those of {positive.name}.",
            )
        parse_preset(made.text, file=f"{name}{SUFFIX}", name=name)
        library.put(name, made.text)
    except (ConfigError, PresetError):
        raise
    except SteerserveError as error:
        raise ConfigError(error.message) from error
    _print_edits(made)
    typer.echo(f"{library.folder / name}{SUFFIX}")
    typer.echo(f'Use it with: "steering": "{name}", or after the model\'s name: @{name}')


@presets_app.command("schema")
def presets_schema() -> None:
    """Print the JSON Schema of preset files, for editors."""
    from steerserve.presets.schema import schema_text

    typer.echo(schema_text(), nl=False)


def _problem(file: Path) -> str | None:
    """Return what is wrong with a file, and where."""
    from steerserve.core.files import read_plain
    from steerserve.presets.preset import MAX_FILE_BYTES, SUFFIX, decode_preset, parse_preset

    if file.suffix != SUFFIX:
        return f"{file}:1:1: a preset's file ends in {SUFFIX}; rename it to {file.stem}{SUFFIX}."
    try:
        # The user named this file, so links are followed; a pipe would keep the command waiting.
        text = decode_preset(read_plain(Path(os.path.realpath(file)), MAX_FILE_BYTES + 1), file=str(file))
        parse_preset(text, file=str(file), name=file.stem)
    except OSError as error:
        return f"{file}:1:1: the file cannot be read: {error.strerror}."
    except PresetError as error:
        return error.message
    return None


def _library() -> PresetLibrary:
    from steerserve.presets.library import open_library

    # The commands report broken files themselves; without a handler Python would print the log's warnings too.
    logging.getLogger("steerserve.presets").addHandler(logging.NullHandler())
    return open_library(environment_settings())


def _model() -> SteeredModel:
    from steerserve.api.local import LocalBackend
    from steerserve.api.model import SteeredModel

    return SteeredModel(LocalBackend(environment_settings()))


def _run_checks(model: SteeredModel, names: Sequence[str], table: Table, *, verbose: bool) -> bool:
    """Run the checks of the named presets, or of all; add a row for each verdict, and tell whether all are good."""
    from steerserve.presets.library import open_library

    presets = open_library(environment_settings(), model.id).snapshot()
    is_ok = True
    for name in names or presets.usable():
        preset = _find(presets, name)
        if not preset.content.checks:
            table.add_row(name, "", "no checks", "", "-")
        for check, result in zip(preset.content.checks, model.check_preset(name), strict=True):
            if verbose:
                typer.echo(f"{name}: {check.prompt!r}\n    {result.text!r}")
            for verdict in result.verdicts:
                is_ok = is_ok and verdict.is_ok
                ok = "[green]yes[/]" if verdict.is_ok else "[red]no[/]"
                table.add_row(name, _short(check.prompt), escape(verdict.requirement), escape(verdict.result), ok)
    for name, problem in sorted(presets.broken.items()):
        if not names or name in names:
            is_ok = False
            table.add_row(escape(name), "", "a readable file", escape(problem), "[red]no[/]")
    return is_ok


def _find(presets: PresetSnapshot, name: str) -> Preset:
    try:
        return presets.find(name)
    except SteerserveError as error:
        raise PresetError(error.message, param="name") from error


def _short(prompt: str) -> str:
    text = " ".join(prompt.split())
    return escape(text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "...")


def _texts(file: Path) -> list[str]:
    """Read the texts of a file, one a line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{file} cannot be read: {reason}.") from error
    texts = [line.strip() for line in text.splitlines() if line.strip()]
    if len(texts) < MIN_TEXTS:
        raise ConfigError(f"{file} has {len(texts)} texts, one a line; at least {MIN_TEXTS} are needed.")
    return texts


def _print_edits(made: MadePreset) -> None:
    table = Table("feature", "label", "AUC", "left out", "p", "scale", "unit", box=None)
    for part in made.edits:
        figures = (f"{part.candidate.auc:.2f}", f"{part.candidate.held_out_auc:.2f}", f"{part.candidate.p_value:.3f}")
        scale = f"{part.edit['scale']:g}"
        table.add_row(str(part.candidate.feature), escape(part.label or ""), *figures, scale, part.edit["unit"])
    print_table(table)

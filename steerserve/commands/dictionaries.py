"""The commands `steerserve dictionaries ...`. Nothing heavy is imported before one runs."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

import steerserve
from steerserve.commands.shared import environment_settings, print_table, read_config

_BUNDLED = Path(steerserve.__file__).parent / "dictionaries" / "bundled"

dictionaries_app = typer.Typer(help="List dictionaries.", no_args_is_help=True)


@dictionaries_app.command("list")
def dictionaries_list() -> None:
    """List the bundled dictionaries, and those in the configured folders."""
    table = Table("source", "architecture", "features", "hook point", box=None)
    roots = [("bundled", _BUNDLED), *(("path", folder) for folder in environment_settings().dictionary_dirs)]
    for kind, root in roots:
        for file in sorted(root.rglob("cfg.json")):
            config = read_config(file)
            hook = (config.get("metadata") or {}).get("hook_name") or config.get("hook_name") or "?"
            folder = file.parent.relative_to(root) if kind == "bundled" else file.parent
            table.add_row(f"{kind}:{folder}", config.get("architecture", "?"), str(config.get("d_sae", "?")), hook)
    print_table(table)

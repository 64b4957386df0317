"""Options and steps that several commands share."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from steerserve.core.config import Settings

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_KEY_VARIABLE = "STEERSERVE_API_KEY"
ServerUrl = Annotated[str, typer.Option(help="URL of a running server, with or without /v1.")]
KeyVariable = Annotated[str, typer.Option(help="Environment variable with the server's API key, if it needs one.")]
_WIDE = 4096
"""Columns, more than any table needs."""


def environment_settings() -> Settings:
    """Return the settings from the environment and the defaults, without a file or flags."""
    from steerserve.core.settings_sources import load_settings

    return load_settings(environ=os.environ)


def print_table(table: Table) -> None:
    """Print each row on one line, whatever the width of the terminal, so that whole cells can be copied."""
    Console(width=_WIDE).print(table)


def read_config(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ConfigError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{file} cannot be read: {error}."
        raise ConfigError(message) from error
    if not isinstance(config, dict):
        message = f"{file} cannot be read: it is not a JSON object."
        raise ConfigError(message)
    return config

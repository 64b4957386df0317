"""What several commands do: read the environment's settings, print a table, read a JSON file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from rich.console import Console

from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from steerserve.core.config import Settings

_WIDE = 4096


def environment_settings() -> Settings:
    """Return the settings without a file or flags: defaults and the environment."""
    from steerserve.core.settings_sources import load_settings

    return load_settings(environ=os.environ)


def print_table(table: Table) -> None:
    """Print each row on one line, whatever the width of the terminal: what is cut off cannot be copied."""
    Console(width=_WIDE).print(table)


def read_config(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ConfigError: it cannot be read, or is no object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{file} cannot be read: {error}."
        raise ConfigError(message) from error
    if not isinstance(config, dict):
        message = f"{file} cannot be read: it is no JSON object."
        raise ConfigError(message)
    return config

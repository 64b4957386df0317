"""API keys: which sources may hold them, and what they may consist of. Messages never show a key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from steerserve.core.errors import ConfigError
from steerserve.core.yaml_document import load_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEY_FIELDS = ("api_keys", "admin_keys")
KEY_VARIABLES = {
    "STEERSERVE_API_KEY": "api_keys",
    "STEERSERVE_API_KEYS": "api_keys",
    "STEERSERVE_ADMIN_KEY": "admin_keys",
    "STEERSERVE_ADMIN_KEYS": "admin_keys",
}
"""The setting of each variable, which holds one key or several separated by commas."""

KEYS_ADVICE = (
    "keys do not belong here. Set STEERSERVE_API_KEY and STEERSERVE_ADMIN_KEY in the environment, "
    "or name a file that holds them in server.keys_file."
)
_KEY = re.compile(r"[!-~]+")


def read_keys(environ: Mapping[str, str], keys_file: Path | None) -> dict[str, list[str]]:
    """Return the keys of each scope that has any, from both the environment and the file.

    Raises:
        ConfigError: the file cannot be used, or a key could never be sent in a header.
    """
    keys_by_field: dict[str, list[str]] = {name: [] for name in KEY_FIELDS}
    for variable, name in KEY_VARIABLES.items():
        keys = (key.strip() for key in environ.get(variable, "").split(","))
        keys_by_field[name] += [check_key(key, variable) for key in keys if key]
    if keys_file is not None:
        for name, file_keys in _read_file(keys_file).items():
            keys_by_field[name] += file_keys
    return {name: list(dict.fromkeys(keys)) for name, keys in keys_by_field.items() if keys}


def _read_file(path: Path) -> dict[str, list[str]]:
    document = load_yaml(path)
    if not isinstance(document.data, dict):
        message = f"{document.where(())}: a keys file is a mapping with the lists api_keys and admin_keys."
        raise ConfigError(message)
    keys_by_field: dict[str, list[str]] = {}
    for name, keys in document.data.items():
        if name not in KEY_FIELDS:
            message = f"{document.where((name,))}: a keys file has only the lists api_keys and admin_keys, not {name}."
            raise ConfigError(message)
        if not isinstance(keys, list):
            message = f"{document.where((name,))}: {name} must be a list of keys."
            raise ConfigError(message)
        keys_by_field[name] = [check_key(key, document.where((name, index))) for index, key in enumerate(keys)]
    return keys_by_field


def check_key(key: object, origin: str) -> str:
    """Return a key that can be sent in a header.

    Raises:
        ConfigError: it cannot; the message begins with `origin` and never shows the key.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        message = f"{origin}: a key is text of printable ASCII characters without spaces (in YAML, put it in quotes)."
        raise ConfigError(message)
    return key

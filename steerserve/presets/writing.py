"""Presets written as YAML: from JSON, or from data."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import yaml

from steerserve.core.errors import ConfigError
from steerserve.core.yaml_document import YamlDocument, parse_yaml
from steerserve.presets.preset import check_preset, decode_preset
from steerserve.presets.schema import SCHEMA_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from steerserve.presets.preset import Preset

_WIDTH = 110


def schema_line(folder: Path) -> str:
    """Return the comment by which editors find the schema, for files in `folder`."""
    return f"# yaml-language-server: $schema={os.path.relpath(SCHEMA_FILE, folder.resolve())}\n"


def dump_preset(data: Mapping[str, object], folder: Path) -> str:
    """Write data as the YAML of a preset that will lie in `folder`: a key a line, small lists and mappings on one."""
    return schema_line(folder) + "".join(_dumped(key, value) for key, value in data.items())


def _dumped(key: str, value: object) -> str:
    style = None if isinstance(value, dict | list) else False
    dumped: str = yaml.safe_dump(
        {key: value}, sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=style
    )
    return dumped


def parse_json_preset(value: object, text: str, *, folder: Path, file: str, name: str) -> Preset:
    """Read a preset from JSON, where null means left out; its text is YAML for `folder`.

    Args:
        value: What the JSON says.
        text: The JSON itself, in which places are found.
        folder: Where the preset will lie.
        file: What messages call it.
        name: What it must call itself.

    Raises:
        PresetError: something is wrong with it.
    """
    try:
        marks = parse_yaml(text, name=file).marks
    except ConfigError:  # JSON that is no YAML, such as one with a tab
        marks = {(): (1, 1)}
    data = _without_nulls(value)
    preset = check_preset(YamlDocument(file, data, marks), text, name=name)
    dumped = dump_preset(cast("Mapping[str, object]", data), folder)  # check_preset has found a mapping
    return replace(preset, text=decode_preset(dumped.encode(), file=file))


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value

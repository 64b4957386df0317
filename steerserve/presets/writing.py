"""Presets written as YAML, from JSON or from data."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import yaml

from steerserve.core.errors import ConfigError, PresetError
from steerserve.core.yaml_document import YamlDocument, parse_yaml
from steerserve.presets.preset import check_preset, decode_preset, parse_preset
from steerserve.presets.schema import SCHEMA_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from steerserve.presets.preset import Preset

_WIDTH = 110
_ODD_BREAKS = frozenset("\x85\u2028\u2029")


def schema_line(folder: Path, schema_file: Path = SCHEMA_FILE) -> str:
    """Return the comment by which editors find the JSON Schema of a YAML file in `folder`."""
    return f"# yaml-language-server: $schema={os.path.relpath(schema_file, folder.resolve())}\n"


def dump_preset(data: Mapping[str, object], folder: Path) -> str:
    """Write data as the YAML of a preset in `folder`: one line a key; small lists and mappings stay on one line."""
    return schema_line(folder) + "".join(_dumped(key, value) for key, value in data.items())


def dump_line(data: Mapping[str, object]) -> str:
    """Write data as YAML on one line: `{feature: 3, dictionary: '123'}`."""
    dumped: str = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=True
    )
    return dumped.strip()


def _dumped(key: str, value: object) -> str:
    style = None if isinstance(value, dict | list) else False
    dumped: str = yaml.dump(
        {key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=style
    )
    return dumped


class _Dumper(yaml.SafeDumper):
    """Puts texts with Unicode's own line breaks in double quotes; without quotes they are read as other breaks."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _ODD_BREAKS.intersection(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def parse_json_preset(value: object, text: str, *, folder: Path, file: str, name: str) -> Preset:
    """Read a preset from JSON, in which null means left out; the result's text is YAML for `folder`.

    Args:
        value: The JSON's value.
        text: The JSON's text, to which positions in messages refer.
        folder: Folder of the preset's file.
        file: Name of the file in messages.
        name: Name that the preset must have.

    Raises:
        PresetError: the preset is wrong.
    """
    try:
        marks = parse_yaml(text, name=file).marks
    except ConfigError:  # JSON that is not YAML, such as one with a tab
        marks = {(): (1, 1)}
    data = _without_nulls(value)
    preset = check_preset(YamlDocument(file, data, marks), text, name=name)
    dumped = dump_preset(cast("Mapping[str, object]", data), folder)  # check_preset refuses anything but a mapping
    if parse_preset(dumped, file=file, name=name).document.data != data:
        raise PresetError(f"{file}:1:1: this preset cannot be written as YAML without a change; send it as YAML.")
    return replace(preset, text=decode_preset(dumped.encode(), file=file))


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value

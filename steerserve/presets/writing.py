"""Presets written as YAML: from JSON, or from data."""

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


def schema_line(folder: Path) -> str:
    """Return the comment by which editors find the schema, for files in `folder`."""
    return f"# yaml-language-server: $schema={os.path.relpath(SCHEMA_FILE, folder.resolve())}\n"


def dump_preset(data: Mapping[str, object], folder: Path) -> str:
    """Write data as the YAML of a preset that will lie in `folder`: a key a line, small lists and mappings on one."""
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
    """Puts texts with line breaks that only Unicode knows in double quotes: bare ones are read as other breaks."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _ODD_BREAKS.intersection(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


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
    if parse_preset(dumped, file=file, name=name).document.data != data:
        raise PresetError(f"{file}:1:1: this cannot be written as YAML without a change; send it as YAML.")
    return replace(preset, text=decode_preset(dumped.encode(), file=file))


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value

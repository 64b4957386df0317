"""Presets from JSON and from data: what is written is read again as what was sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerserve.core.errors import PresetError
from steerserve.presets.preset import Preset, parse_preset
from steerserve.presets.writing import dump_line, parse_json_preset


def sent(**fields: object) -> Preset:
    value = {"name": "mine", **fields}
    return parse_json_preset(value, json.dumps(value), folder=Path(), file="mine.yaml", name="mine")


@pytest.mark.parametrize("text", ["a\x85b", "\u2028", "a\u2029 b", "a\rb\n", "0123", "null", "1:30", "é\ufeff", " x "])
def test_a_text_is_written_as_it_was_sent(text: str) -> None:
    written = sent(system=text)
    assert parse_preset(written.text, file="mine.yaml").content.system == text == written.content.system


@pytest.mark.parametrize("dictionary", ["123", "null", "0123", "yes", "1:30", "a: b", "#x", "res0"])
def test_an_edit_on_one_line_is_the_edit(dictionary: str) -> None:
    edit = {"feature": 3, "scale": 1e-07, "dictionary": dictionary}
    document = parse_preset(f"name: mine\nedits:\n  - {dump_line(edit)}\n", file="mine.yaml").document
    assert document.data == {"name": "mine", "edits": [edit]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"edits": [{"vector": {"hook": "x"}}]}, "vector: a vector has exactly one of values and base64."),
        ({"system": "\ud800"}, "system must be text of whole characters, not "),
        ({"edits": [None]}, "edits[0] must be a mapping of names to values, not null."),
        ({"edits": [True]}, "edits[0] must be a mapping of names to values, not true."),
        ({"sampling": {"stop": []}}, "a preset must do something"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(fields: dict[str, object], said: str) -> None:
    with pytest.raises(PresetError) as caught:
        sent(**fields)
    assert said in caught.value.message

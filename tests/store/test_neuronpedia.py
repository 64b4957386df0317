"""Neuronpedia's exported labels are read in each of their forms, and other files are refused with the place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from steerserve.core.errors import ConfigError
from steerserve.store.neuronpedia import read_neuronpedia

ENTRIES = [
    {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "3", "description": " words about\nthe sea ",
     "explanationModelName": "gpt-4o"},
    {"index": 5, "description": "numbers"},
    {"index": 5, "description": "numbers over ten"},
    {"index": 6, "description": "   "},
    {"index": 7, "description": None},
    {"index": 4, "description": "\ud800a \x1b[1mship", "explanationModelName": "\ud800"},
]  # fmt: skip


@pytest.mark.parametrize("form", ["list", "lines", "packed"])
def test_labels_are_read(tmp_path: Path, form: str) -> None:
    content = json.dumps(ENTRIES) if form == "list" else "\n".join(map(json.dumps, ENTRIES)) + "\n"
    file = tmp_path / "labels"
    file.write_bytes(gzip.compress(content.encode()) if form == "packed" else content.encode())

    labels = read_neuronpedia(file, 8)

    assert {feature: label.text for feature, label in labels.items()} == {
        3: "words about the sea",
        5: "numbers over ten",
        4: "a [1mship",
    }
    assert labels[4].author is None
    assert labels[3].origin == "neuronpedia"
    assert labels[3].author == "gpt-4o"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no label"),
        (b"[1]", "entry 1"),
        (b'{"index": 9, "description": "a"}', "0 to 7, and not 9"),
        (b'{"index": true, "description": "a"}', "entry 1"),
        (b'{"index": 1, "description": 3}', "entry 1"),
        (b'{"index": 1, "description": "a"}\n{"index":', "line 2"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"index": 1}', "entry 1"),
        (b"\x1f\x8bnot packed", "cannot be read"),
        (gzip.compress(b"[]")[:10] + b"\xff" * 20, "cannot be read"),
        (gzip.compress(b"[]")[:-2], "cannot be read"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "labels"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_neuronpedia(file, 8)

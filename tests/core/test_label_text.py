"""Labels are one line that can be shown and stored, and numbers beside them are finite, whatever a file holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.core.errors import ConfigError
from steerserve.core.label_text import clean_label, finite_number, is_one_line
from steerserve.store.export import read_labels

if TYPE_CHECKING:
    from pathlib import Path

PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  words\tabout\nthe sea ", "words about the sea"),
        ("\x1b[31mred\x00 sea", "[31mred sea"),
        ("a\ud800b\udfff", "ab"),
        ("\u202eevil\u2066 \u200btext\ufeff", "evil text"),
        (PERSIAN, PERSIAN),
        (FAMILY, FAMILY),
        ("\u200d \u200c", ""),
        ("\ue000\x07", ""),
        ("eight letters", "eight"),
    ],
)
def test_a_label_is_cleaned(text: str, cleaned: str) -> None:
    assert clean_label(text, 6 if cleaned == "eight" else 100) == cleaned
    clean_label(text, 100).encode()


@pytest.mark.parametrize("text", [" bridges ", PERSIAN, FAMILY, "\u6a4b", "na\u00efve"])
def test_what_people_write_is_one_line(text: str) -> None:
    assert is_one_line(text)
    assert clean_label(text, 100) == text.strip()


@pytest.mark.parametrize("text", ["", "  ", "\u200d", "a\nb", "a\x1bb", "a\u202eb", "a\ud800"])
def test_what_cannot_be_seen_is_not(text: str) -> None:
    assert not is_one_line(text)


@pytest.mark.parametrize("value", [10**400, float("nan"), float("-inf"), True, "1", None])
def test_a_number_that_cannot_be_stored_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        finite_number(value)


def line(**fields: object) -> str:
    return json.dumps({"feature": 1, "labels": [{"text": "bridges", "origin": "llm"} | fields]})


@pytest.mark.parametrize(
    "written",
    [
        line(score=10**400),
        line(score=float("inf")),
        line(created=float("nan")),
        line(created=10**400),
        line(score=True),
        line(text="\ud800\x1b"),
        '{"feature": 1, "label": "\\u0000"}',
    ],
)
def test_a_line_that_cannot_be_stored_is_refused_with_its_place(tmp_path: Path, written: str) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"feature": 0, "label": "fine"}\n' + written, encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        read_labels(file, 8)


def test_what_can_be_stored_of_a_line_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(line(text="\x1b]0;bri\ud800dges", author="gpt\x00", score=1), encoding="utf-8")
    [label] = read_labels(file, 8)[1]
    found: tuple[Any, ...] = (label.text, label.author, label.score)
    assert found == ("]0;bridges", "gpt", 1.0)

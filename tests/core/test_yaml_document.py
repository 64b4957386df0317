"""YAML files are read strictly, and everything in them has a place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import ConfigError
from steerserve.core.yaml_document import load_yaml, parse_yaml

if TYPE_CHECKING:
    from pathlib import Path


def test_data_come_out_plain_and_each_key_and_item_has_its_place() -> None:
    document = parse_yaml("engine:\n  slots: 4\nnames:\n- a\n- {x: 1.5, y: null}\n", name="f.yaml")
    assert document.data == {"engine": {"slots": 4}, "names": ["a", {"x": 1.5, "y": None}]}
    assert document.where(("engine", "slots")) == "f.yaml:2:3"
    assert document.where(("names", 1)) == "f.yaml:5:3"
    assert document.where(("names", 1, "y")) == "f.yaml:5:12"


def test_the_place_of_something_absent_is_that_of_what_would_hold_it() -> None:
    document = parse_yaml("a:\n  b: 1\n", name="f.yaml")
    assert document.where(("a", "missing", 3)) == "f.yaml:1:1"
    assert document.where(("missing",)) == "f.yaml:1:1"


def test_an_empty_text_is_no_data() -> None:
    assert parse_yaml("# nothing\n", name="f.yaml").data is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: not valid YAML: the key 'a' appears twice"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: &x [*x]\n", "aliases"),
        ("a: [1\nb: 2\n", "f.yaml:2:2: not valid YAML"),
        ("1: a\n", "f.yaml:1:1: not valid YAML: a key must be text"),
        ("on: a\n", "a key must be text"),
        ("? [a]\n: b\n", "a key must be text"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "f.yaml:1:4: not valid YAML"),
        ("a: !!python/name:os.system\n", "f.yaml:1:4: not valid YAML"),
        ("a: !!set {b}\n", "not a plain value"),
        ("a: 2026-01-01\n", "in quotes"),
        ("a: 2026-13-45\n", "f.yaml:1:4: not valid YAML"),
        ('a: !!int ""\n', "f.yaml:1:4: not valid YAML: '' is not a valid int"),
        ("a: !!bool maybe\n", "'maybe' is not a valid bool"),
        ("a: !!timestamp soon\n", "'soon' is not a valid timestamp"),
        ('!!int "": a\n', "f.yaml:1:1: not valid YAML: '' is not a valid int"),
        ("a: \x07\n", "f.yaml:1:4: YAML does not allow the character '\\x07'"),
        ("<<: {a: 1}\n", "f.yaml:1:1"),
        ("[" * 5000, "f.yaml:1:22: not valid YAML: it is nested too deeply"),
        ("[" * 20 + "[1]" + "]" * 20, "nested too deeply"),
        ("a: [" + "0," * 20_000 + "0]", "has at most 20000 keys and values"),
        ("a:\n\t- b\n", "f.yaml:2:1"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, name="f.yaml")
    assert complaint in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("number", "meant"),
    [
        ("0123", "83"),
        ("1:30", "90"),
        ("1_0", "10"),
        ("0b11", "3"),
        ("0x1f", "31"),
        ("-017", "-15"),
        ("1:30.5", "90.5"),
        (".5", "0.5"),
        ("1.", "1.0"),
        ("1_0.5", "10.5"),
        ("08.5", "8.5"),
    ],
)
def test_a_number_that_yaml_reads_in_its_own_way_is_refused(number: str, meant: str) -> None:
    for text, place in ((f"a: {number}\n", "1:4"), (f"a:\n- [1, {number}]\n", "2:7")):
        with pytest.raises(ConfigError) as caught:
            parse_yaml(text, name="f.yaml")
        said = (
            f"f.yaml:{place}: not valid YAML: {number!r} is not a plain number (YAML reads {meant}): write plain digits"
        )
        assert caught.value.message.startswith(said)
    assert parse_yaml(f"a: '{number}'\n", name="f.yaml").data == {"a": number}


def test_a_number_of_thousands_of_digits_is_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match="is not a plain number") as caught:
        parse_yaml("a: 0b" + "1" * 20_000 + "\n", name="f.yaml")
    assert len(caught.value.message) < 300


def test_plain_numbers_are_numbers() -> None:
    document = parse_yaml("[0, -0, 12, +3, -4, 0.5, -1.25, 1.5e+3, 1.0e-07, 1e3]\n", name="f.yaml")
    assert document.data == [0, 0, 12, 3, -4, 0.5, -1.25, 1500.0, 1e-7, "1e3"]


def test_what_is_deep_or_long_within_reason_is_read() -> None:
    assert parse_yaml("[" * 20 + "1" + "]" * 20, name="f.yaml").data
    assert parse_yaml("[" + "0," * 19_000 + "]", name="f.yaml").data == [0] * 19_000


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no file .*absent\.yaml"):
        load_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_yaml(tmp_path / "latin.yaml")

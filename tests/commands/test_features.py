"""`steerserve features`: what is known is searched, shown, exported; labels are given, taken away and imported."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from steerserve.cli import app, main
from steerserve.dictionaries.sources import read_source
from steerserve.dictionaries.weights import SizeLimit
from steerserve.store.placement import replacing
from steerserve.store.records import Calibration
from steerserve.store.store import FeatureStore
from steerserve.store.stored import StoreMeta
from tests.interpret.known import byte_of, feature
from tests.tiny import tiny_sae_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a dictionary that was not interpreted; returns its source."""
    monkeypatch.setenv("STEERSERVE_DICTIONARY_DIRS", str(tmp_path))
    return f"path:{tiny_sae_folder(tmp_path / 'dict')}"


@pytest.fixture
def interpreted(source: str, tmp_path: Path) -> str:
    sha256 = read_source(source, [tmp_path], SizeLimit(2**30)).sha256
    meta = StoreMeta(sha256, 96, "tiny", 1000)
    with replacing(tmp_path / "dict" / "features.sqlite3", meta) as store:
        features = [
            feature(0, ["the river"], maximum=4.0, promoted="ab"),
            feature(1, ["a [b]\nridge"], label="bridges"),
        ]
        store.write_features([*features, *(feature(number, ["filler"]) for number in range(2, 9))], byte_of)
        store.write_calibrations({0: Calibration(40.0, 0.2)})
    return source


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["features", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["steerserve", "features", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_features_are_searched(interpreted: str) -> None:
    head, row = printed("search", interpreted, "ridge", "bridge").splitlines()
    assert head.split()[:2] == ["feature", "label"]
    assert row.split()[:2] == ["1", "bridges"]
    assert "a [b] ridg[e]" in row
    assert [line.split()[0] for line in printed("search", interpreted, "--sort", "max").splitlines()[1:3]] == ["0", "1"]
    assert printed("search", interpreted, "--limit", "1", "--offset", "1").splitlines()[1].split()[0] == "1"


def test_a_feature_is_shown(interpreted: str) -> None:
    lines = printed("show", interpreted, "0").splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == [
        *("dose", "density", "activation", "fires", "promotes", "suppresses", "near", "4"),
    ]
    assert "40, output score 0.2 (writes)" in lines[0]
    assert lines[4].split()[1:] == ["'a'", "'b'"]
    assert lines[-2].endswith("1 (0.50) bridges")
    assert lines[-1].endswith("the rive[r]")


def test_a_label_is_given_and_taken_away(interpreted: str) -> None:
    assert printed("label", interpreted, "1", " spans  of steel ") == "1: spans of steel\n"
    assert printed("show", interpreted, "1").splitlines()[0].endswith("spans of steel (person)")
    assert printed("label", interpreted, "1") == "1: bridges\n"
    assert printed("label", interpreted, "0") == "0: no label\n"


def test_a_label_is_kept_without_what_cannot_be_shown(interpreted: str) -> None:
    assert printed("label", interpreted, "1", "red\x1b[31m\nbridges\u202e") == "1: red [31m bridges\n"


@pytest.mark.parametrize(
    ("text", "reason"), [(" \t", "needs visible words"), ("\x1b\u200b", "needs visible words"), ("x" * 201, "201")]
)
def test_a_label_that_cannot_be_kept_is_refused(
    interpreted: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    assert reason in refused(capsys, monkeypatch, "label", interpreted, "1", text)
    assert printed("show", interpreted, "1").splitlines()[0].startswith("label         bridges (words")


def test_labels_need_no_interpretation(source: str) -> None:
    assert printed("label", source, "7", "mine") == "7: mine\n"
    assert printed("show", source, "7") == "label         mine (person)\n"
    assert printed("search", source, "mine").splitlines()[1].split() == ["7", "mine"]


def test_what_is_exported_can_be_imported_elsewhere(interpreted: str, tmp_path: Path) -> None:
    printed("label", interpreted, "0", "by hand")
    file = tmp_path / "out.jsonl"
    printed("export", interpreted, "--out", str(file))
    assert printed("export", interpreted) == file.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["feature"] for line in lines] == list(range(9))
    assert (lines[0]["dose"], lines[0]["max"], lines[1]["dose"]) == (40.0, 4.0, None)
    assert "".join(lines[0]["snippets"][0]["tokens"]) == "the river"
    other = f"path:{tiny_sae_folder(tmp_path / 'other', seed=1)}"
    assert "labels of 2 features" in printed("import", other, str(file))
    store = FeatureStore.open(tmp_path / "other" / "features.sqlite3")
    assert store.labels(range(9)) == {0: "by hand", 1: "bridges"}
    found = store.feature(1)
    assert found is not None
    assert found.labels == feature(1, label="bridges").labels


def test_the_history_of_labels_is_shown_and_exported(interpreted: str) -> None:
    for text in ("one", "two"):
        printed("label", interpreted, "1", text)
    printed("label", interpreted, "1")
    lines = printed("show", interpreted, "1", "--history").splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["two (person)", "one (person)", "bridges (words, 0.75)"]
    printed("label", interpreted, "50", "mine")
    printed("label", interpreted, "50")
    exported = {line["feature"]: line for line in map(json.loads, printed("export", interpreted).splitlines())}
    assert [label["text"] for label in exported[1]["history"]] == ["two", "one", "bridges"]
    assert [label["text"] for label in exported[1]["labels"]] == ["bridges"]
    assert (exported[0]["history"], [label["text"] for label in exported[50]["history"]]) == ([], ["mine"])


def test_an_older_label_from_a_file_replaces_none_that_was_given_since(interpreted: str, tmp_path: Path) -> None:
    printed("label", interpreted, "0", "old")
    printed("export", interpreted, "--out", str(tmp_path / "out.jsonl"))
    printed("label", interpreted, "0", "new")
    output = printed("import", interpreted, str(tmp_path / "out.jsonl"))
    assert "labels of 0 features imported" in output
    assert "The other 2" in output
    assert printed("show", interpreted, "0").splitlines()[0].endswith("new (person)")


def test_a_whole_store_is_copied_out_and_in(
    interpreted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed("label", interpreted, "0", "by hand")
    file = tmp_path / "whole.sqlite3"
    printed("export", interpreted, "--store", str(file))
    assert "exists already" in refused(capsys, monkeypatch, "export", interpreted, "--store", str(file))
    assert "give one" in refused(capsys, monkeypatch, "export", interpreted, "--store", "a", "--out", "b")
    same = f"path:{tiny_sae_folder(tmp_path / 'same')}"
    printed("label", same, "0", "later")
    printed("label", same, "2", "mine")
    printed("import", same, str(file))
    store = FeatureStore.open(tmp_path / "same" / "features.sqlite3")
    assert store.labels(range(9)) == {0: "later", 1: "bridges", 2: "mine"}
    assert store.calibrations() == {0: Calibration(40.0, 0.2)}
    assert store.counts().num_features == 9
    assert store.search("river")[0]
    other = f"path:{tiny_sae_folder(tmp_path / 'other', seed=1)}"
    assert "about other weights" in refused(capsys, monkeypatch, "import", other, str(file))
    assert not (tmp_path / "other" / "features.sqlite3").exists()
    file.write_bytes(file.read_bytes()[:5000])
    assert "cannot be used" in refused(capsys, monkeypatch, "import", same, str(file))
    assert store.labels([2]) == {2: "mine"}


def test_short_lines_and_neuronpedias_are_imported(source: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"feature": 7, "label": "bridges"}\n\n', encoding="utf-8")
    printed("import", source, str(file))
    file.write_text('{"index": "7", "description": "spans"}\n{"index": "8", "description": "x"}\n', encoding="utf-8")
    printed("import", source, str(file), "--neuronpedia")
    store = FeatureStore.open(tmp_path / "dict" / "features.sqlite3")
    assert store.labels([7, 8]) == {7: "bridges", 8: "x"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x", 'line 1: an object with "feature"'),
        ("[]", 'line 1: an object with "feature"'),
        ('{"feature": 1}', 'line 1: an object with "feature"'),
        ('{"feature": 1, "label": " "}', 'line 1: an object with "feature"'),
        ('{"feature": 1, "labels": [{"text": "x", "origin": "god"}]}', 'line 1: an object with "feature"'),
        ('{"feature": 96, "label": "x"}', "features 0 to 95, and not 96"),
        ('{"feature": true, "label": "x"}', "and not True"),
    ],
)
def test_lines_that_are_no_labels_are_refused_and_change_nothing(
    source: str,
    tmp_path: Path,
    line: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(line, encoding="utf-8")
    assert reason in refused(capsys, monkeypatch, "import", source, str(file))
    assert not (tmp_path / "dict" / "features.sqlite3").exists()


def test_what_cannot_be_is_one_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        return refused(capsys, monkeypatch, *arguments)

    assert "`steerserve interpret`" in error("search", source, "x")
    assert "features 0 to 95, and not 96" in error("label", source, "96", "x")
    assert "needs visible words" in error("label", source, "1", " ")
    assert "cannot be read" in error("import", source, str(tmp_path / "nothing"))
    printed("label", source, "1", "x")
    assert "sort is 'best'" in error("search", source, "--sort", "best")
    assert "at most 16" in error("search", source, *(["x"] * 17))
    assert "Nothing is stored about feature 2" in error("show", source, "2")
    assert "cannot be written" in error("export", source, "--out", str(tmp_path))
    (tmp_path / "dict" / "features.sqlite3").write_bytes(b"no database")
    assert "cannot be used" in error("search", source, "x")

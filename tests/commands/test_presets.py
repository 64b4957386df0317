"""`steerserve presets`: listed, shown, checked, tried and made from the command line."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from steerserve.cli import app, main
from steerserve.contrast.examples import FORMAL_SLANGY
from steerserve.presets.preset import parse_preset
from tests.presets.broken import GOOD
from tests.tiny import tiny_llama_folder, tiny_sae_folder

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

STRONG = "name: strong\nmodel: tiny\ndescription: Pushes.\nedits: [{feature: 3, scale: 9.0}]\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("command")
    tiny_llama_folder(root / "tiny", context=512)
    tiny_sae_folder(root / "dictionaries" / "res0")
    return root


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of presets of a server of the tiny model."""
    for name, value in {
        "MODEL__SOURCE": files / "tiny",
        "MODEL__DEVICE": "cpu",
        "DICTIONARIES": f"res0=path:{files / 'dictionaries' / 'res0'}",
        "DICTIONARY_DIRS": files / "dictionaries",
        "PRESETS_DIR": tmp_path / "presets",
        "ENGINE__SLOTS": 2,
        "ENGINE__CONTEXT": 512,
        "ENGINE__THREADS": 1,
        "CACHE_DIR": files / "cache",
    }.items():
        monkeypatch.setenv(f"STEERSERVE_{name}", str(value))
    (tmp_path / "presets").mkdir()
    return tmp_path / "presets"


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["presets", *map(str, arguments)], catch_exceptions=False)


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["steerserve", "presets", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_presets_are_listed_and_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "strong.yaml").write_text(STRONG)
    (folder / "formal.yaml").write_text(GOOD)
    (folder / "bad.yaml").write_text("name: bad\n")
    lines = ran("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "bad", "formal", "strong"]
    assert "cannot be used: bad.yaml:1:1: a preset must do something" in lines[1]
    assert lines[2].split()[1:6] == ["2", "tiny", "4", "2", "folder"]
    assert ran("show", "strong").stdout == STRONG
    assert "Did you mean 'strong'?" in refused(capsys, monkeypatch, "show", "stron")
    assert "No previous version" in refused(capsys, monkeypatch, "show", "strong", "--previous")


def test_files_are_checked_with_places_and_an_exit_code(folder: Path, tmp_path: Path) -> None:
    (folder / "formal.yaml").write_text(GOOD)
    assert (ran("check").exit_code, ran("check").stdout) == (0, "1 good, 0 broken\n")
    (folder / "bad.yaml").write_text("name: bad\nsistem: x\n")
    found = ran("check")
    assert (found.exit_code, found.stdout) == (1, "1 good, 1 broken\n")
    assert found.stderr == f"{folder}/bad.yaml:2:1: sistem is not known; did you mean system?\n"
    other = tmp_path / "other.yml"
    other.write_text(GOOD)
    found = ran("check", folder / "formal.yaml", folder / "bad.yaml", other, tmp_path / "absent.yaml", tmp_path)
    assert (found.exit_code, found.stdout) == (1, "1 good, 4 broken\n")
    assert [line.split(":")[1:3] for line in found.stderr.splitlines()] == [["2", "1"], *[["1", "1"]] * 3]


def test_a_pipe_is_no_preset_and_nobody_waits_for_it(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "formal.yaml").symlink_to(folder / "formal.yaml")
    (folder / "formal.yaml").write_text(GOOD)
    found = ran("check", tmp_path / "pipe.yaml", tmp_path / "formal.yaml")
    assert (found.exit_code, found.stdout) == (1, "1 good, 1 broken\n")
    assert "the file cannot be read: it is not a regular file" in found.stderr


def test_the_schema_is_printed() -> None:
    assert json.loads(ran("schema").stdout)["title"] == "steerserve preset"


def test_checks_are_tried_on_the_model(folder: Path) -> None:
    (folder / "good.yaml").write_text(
        STRONG.replace("strong", "good") + "sampling: {temperature: 0}\nchecks:\n"
        "- {prompt: Tell me, max_tokens: 8, max_kl: 100, max_repetition: 1.0, contains_none: [no such thing]}\n"
    )
    (folder / "failing.yaml").write_text(
        STRONG.replace("strong", "failing") + "checks:\n"
        "- {prompt: Tell me, max_tokens: 8, max_kl: 0, contains_any: [no such thing]}\n"
        "- {prompt: Tell me, max_tokens: 8, activates: {feature: 3, above: 100000}}\n"
        "- {prompt: Tell me, activates: {feature: 300, above: 1}}\n"
    )
    (folder / "bare.yaml").write_text(STRONG.replace("strong", "bare"))
    good = ran("test", "good")
    assert good.exit_code == 0, good.output
    rows = good.stdout.splitlines()
    assert len(rows) == 4
    assert all(row.split()[-1] == "yes" for row in rows[1:])
    every = ran("test", "--verbose")
    assert every.exit_code == 1
    assert sum(line.endswith(" no") for line in map(str.rstrip, every.stdout.splitlines())) == 4
    assert "features 0 to 95" in every.stdout
    assert "no checks" in every.stdout
    (folder / "failing.yaml").unlink()
    assert ran("test").exit_code == 0
    (folder / "bad.yaml").write_text("name: [")
    broken = ran("test")
    assert (broken.exit_code, "bad.yaml:1:8" in broken.stdout) == (1, True)


@pytest.mark.slow
def test_a_preset_is_made_of_what_tells_texts_apart(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capital, small = tmp_path / "capital.txt", tmp_path / "small.txt"
    texts = [text[:20] for text in (*FORMAL_SLANGY.positive, *FORMAL_SLANGY.negative)]
    capital.write_text("\n\n".join(text.upper() for text in texts))
    small.write_text("\n".join(text.lower() for text in texts))
    new = ("new", "capital", "--positive", capital, "--negative", small, "--max-edits", 2)
    made = ran(*new)
    assert made.exit_code == 0, made.output
    text = (folder / "capital.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=")
    preset = parse_preset(text, file="capital.yaml", name="capital")
    assert 1 <= len(preset.edits) <= 2
    assert {edit.unit for edit in preset.edits} <= {"dose", "norm"}
    assert "dose" in text
    assert preset.content.model == "tiny"
    assert all(str(edit.feature) in made.stdout for edit in preset.edits)
    assert f"{folder}/capital.yaml" in made.stdout
    assert "exists already" in refused(capsys, monkeypatch, *new)
    assert ran(*new, "--replace").exit_code == 0
    few = ("--positive", capital, "--negative", tmp_path / "absent.txt")
    assert "cannot be read" in refused(capsys, monkeypatch, "new", "x", *few)
    assert "not a name for a preset" in refused(
        capsys, monkeypatch, "new", "../x", "--positive", capital, "--negative", small
    )
    (tmp_path / "one.txt").write_text("one\n")
    assert "at least 2" in refused(
        capsys, monkeypatch, "new", "x", "--positive", capital, "--negative", tmp_path / "one.txt"
    )
    (tmp_path / "few.txt").write_text("one\ntwo\nsix\n")
    (tmp_path / "others.txt").write_text("red\nblue\ngreen\n")
    alike = ("--positive", tmp_path / "few.txt", "--negative", tmp_path / "others.txt")
    assert "better than chance" in refused(capsys, monkeypatch, "new", "x", *alike)

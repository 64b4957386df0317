"""`steerserve vectors`: control vectors of other programs are imported, listed and used."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from steerserve.cli import app, main
from steerserve.contrast.vectors import VectorStore
from tests.model.test_control_vector import write_gguf
from tests.tiny import D_MODEL

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

DIRECTIONS = {f"direction.{block}": np.full(D_MODEL, block + 1, dtype=np.float32) for block in (1, 0)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of dictionaries that the commands work in."""
    monkeypatch.setenv("STEERSERVE_DICTIONARY_DIRS", str(tmp_path / "dictionaries"))
    return tmp_path / "dictionaries"


@pytest.fixture
def happy(tmp_path: Path) -> Path:
    """Write a control vector for two blocks."""
    return write_gguf(tmp_path / "happy.gguf", DIRECTIONS)


def printed(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["vectors", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["steerserve", "vectors", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    assert (caught.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    return captured.err


def test_a_control_vector_is_imported_listed_and_steers(folder: Path, happy: Path, llama: Runtime) -> None:
    said = printed("import", happy)
    assert said.startswith("happy: 2 hook points from blocks.0.hook_resid_post to blocks.1.hook_resid_post")
    assert re.search(r"happy +any +blocks.0.hook_resid_post and 1 more +48 +control vector +\d{4}-", printed("list"))
    found = VectorStore(folder / ".vectors").find("happy")
    assert found.layers["blocks.1.hook_resid_post"] == (2.0,) * D_MODEL
    assert (found.model, dict(found.notes)) == (None, {"model_hint": "llama"})
    widths = {name: llama.lens.width(name) for name in llama.lens.hook_names}
    assert found.misfit(llama.model_id, widths) is None


def test_blocks_a_name_and_a_model_can_be_chosen(folder: Path, happy: Path) -> None:
    printed("import", happy, "--name", "late", "--layers", "1", "--model", "tiny")
    printed("import", happy, "--name", "all", "--layers", "0-7")
    store = VectorStore(folder / ".vectors")
    assert list(store.find("late").layers) == ["blocks.1.hook_resid_post"]
    assert store.find("late").model == "tiny"
    assert len(store.find("all").layers) == 2


def test_a_vector_of_another_server_is_imported_as_it_is(folder: Path, happy: Path, tmp_path: Path) -> None:
    printed("import", happy)
    there = folder / ".vectors" / "happy.safetensors"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(there.read_bytes())
    printed("import", copy)
    store = VectorStore(folder / ".vectors")
    assert store.find("copy").layers == store.find("happy").layers
    assert store.find("copy").created == store.find("happy").created


def test_what_cannot_be_imported_is_one_line(
    folder: Path, happy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed("import", happy)
    assert "already" in refused(capsys, monkeypatch, "import", happy)
    printed("import", happy, "--replace")
    assert "cannot name a vector" in refused(capsys, monkeypatch, "import", happy, "--name", "../up")
    assert "no direction in the blocks 5-9" in refused(
        capsys, monkeypatch, "import", happy, "--name", "x", "--layers", "5-9"
    )
    assert "not 'all'" in refused(capsys, monkeypatch, "import", happy, "--name", "x", "--layers", "all")
    assert "cannot be read" in refused(capsys, monkeypatch, "import", tmp_path / "absent.gguf")
    pickle = tmp_path / "vector.pt"
    pickle.write_bytes(b"\x80\x04\x95" + b"\0" * 64)
    assert "not a safetensors file" in refused(capsys, monkeypatch, "import", pickle)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(happy.read_bytes()[:60])
    assert "cannot be read as a GGUF control vector" in refused(capsys, monkeypatch, "import", cut)
    zero = write_gguf(tmp_path / "zero.gguf", {"direction.1": np.zeros(D_MODEL, dtype=np.float32)})
    assert "zero everywhere" in refused(capsys, monkeypatch, "import", zero)
    assert VectorStore(folder / ".vectors").names() == ["happy"]


def test_no_vectors_are_an_empty_table(folder: Path) -> None:
    assert "hook points" in printed("list")
    assert not folder.exists()

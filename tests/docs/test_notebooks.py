"""The notebooks run from the first cell to the last, and show what their stored outputs promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.docs.notebooks import run

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 2


@pytest.mark.real_model
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_shows_what_it_stored(file: Path) -> None:
    stored = json.loads(file.read_text(encoding="utf-8"))
    fresh = json.loads(file.read_text(encoding="utf-8"))
    run(fresh)
    assert [_kinds(cell) for cell in fresh["cells"]] == [_kinds(cell) for cell in stored["cells"]]


def _kinds(cell: dict[str, Any]) -> list[tuple[str, list[str]]]:
    return [(output["output_type"], sorted(output.get("data", {}))) for output in cell.get("outputs", [])]

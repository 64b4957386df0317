"""A runtime with transcoders beside the other dictionaries, and its oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from steerserve.runtime import Runtime
    from tests.engine.gated_oracle import GatedOracle


@pytest.fixture(scope="session")
def all_folders(dictionary_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of all dictionaries, transcoders last."""
    from tests.engine.transcoders import transcoder_folders

    return dictionary_folders | transcoder_folders(tmp_path_factory.mktemp("transcoders"))


@pytest.fixture(scope="session")
def transcoding(model_folders: dict[str, Path], all_folders: dict[str, Path]) -> Iterator[Runtime]:
    """Serve the tiny Llama with them."""
    from steerserve.core.config import Settings
    from steerserve.runtime import build_runtime

    settings = Settings.model_validate(
        {
            "model": {"source": str(model_folders["llama"]), "device": "cpu"},
            "dictionaries": [{"id": name, "source": f"path:{path}"} for name, path in all_folders.items()],
            "engine": {"slots": 4, "context": 128, "prefill_chunk": 16, "queue": 64, "threads": 1},
        }
    )
    with build_runtime(settings) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def gated_oracle(transcoding: Runtime, model_folders: dict[str, Path], all_folders: dict[str, Path]) -> GatedOracle:
    """Return its oracle."""
    from steerserve.model.norms import measure_norms
    from tests.engine.gated_oracle import GatedOracle

    medians = {name: median for name, (median, _) in measure_norms(transcoding.lens).items()}
    medians |= {found.id: found.median_norm for found in transcoding.dictionaries()}
    return GatedOracle(model_folders["llama"], all_folders, medians, special={256, 257, 258})

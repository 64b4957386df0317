"""The real default model with its dictionary; these tests are skipped where its weights cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from steerserve.core.config import DEFAULT_DICTIONARY_SOURCE, DEFAULT_MODEL, Settings
from steerserve.core.errors import ModelSourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.runtime import Runtime
    from tests.oracle import Oracle

HOOK_NAME = "blocks.17.hook_resid_post"


@pytest.fixture(scope="session")
def default_folder() -> Path:
    """Return the folder of the default model's files, from the cache or fetched now."""
    from steerserve.model.source import fetch_model

    try:
        return fetch_model(DEFAULT_MODEL).path
    except ModelSourceError as error:
        pytest.skip(f"the default model is not in the cache and cannot be fetched: {error}")


@pytest.fixture(scope="session")
def default_dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the bundled dictionary, or of a random one where none is bundled."""
    from steerserve.dictionaries.sources import BUNDLED_DIR
    from tests.tiny import tiny_sae_folder

    bundled: Path = BUNDLED_DIR / DEFAULT_DICTIONARY_SOURCE.removeprefix("bundled:")
    if (bundled / "cfg.json").is_file():
        return bundled
    folder = tmp_path_factory.mktemp("random") / "res17"
    return tiny_sae_folder(folder, "jumprelu", d_in=576, d_sae=512, hook_name=HOOK_NAME, model_name=DEFAULT_MODEL)


@pytest.fixture(scope="session")
def default_runtime(default_folder: Path, default_dictionary: Path) -> Iterator[Runtime]:
    """Serve the default model, as `steerserve serve` does."""
    from steerserve.runtime import build_runtime

    settings = Settings.model_validate(
        {
            "model": {"source": str(default_folder), "device": "cpu"},
            "dictionaries": [{"id": "res17", "source": f"path:{default_dictionary}"}],
            "engine": {"slots": 16, "context": 1024},
        }
    )
    with build_runtime(settings) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def default_oracle(default_runtime: Runtime, default_folder: Path, default_dictionary: Path) -> Oracle:
    """Return the oracle of the default model."""
    from steerserve.model.norms import measure_norms
    from tests.oracle import Oracle

    medians = {name: median for name, (median, _) in measure_norms(default_runtime.lens).items()}
    medians |= {found.id: found.median_norm for found in default_runtime.dictionaries()}
    return Oracle(default_folder, {"res17": default_dictionary}, medians, set(default_runtime.tokenizer.special_ids))

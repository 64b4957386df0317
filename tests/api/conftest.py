"""A tiny model behind `SteeredModel`, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from steerserve.api.local import LocalBackend
from steerserve.api.model import SteeredModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.runtime import Runtime


@pytest.fixture(scope="module")
def local(llama: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredModel]:
    """Load the tiny Llama with all dictionaries, as `llama` serves it."""
    folder = tmp_path_factory.mktemp("api")
    sections = {"dictionary_dirs": (folder / "dictionaries",), "presets_dir": folder / "presets"}
    with SteeredModel(LocalBackend(llama.settings.model_copy(update=sections))) as model:
        yield model

"""A tiny model behind `SteeredModel`, in this process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from steerserve.api.local import LocalBackend
from steerserve.api.model import SteeredModel
from steerserve.server.app import create_app
from tests.bench.stub import served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.runtime import Runtime


@pytest.fixture(scope="module")
def remote(llama: Runtime) -> Iterator[SteeredModel]:
    """Connect to a server of the tiny Llama over a real socket."""
    app = SimpleNamespace(app=lambda: create_app(llama))
    with served(app) as url, SteeredModel.connect(url + "/v1") as model:  # type: ignore[arg-type]
        yield model


@pytest.fixture(scope="module")
def local(llama: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredModel]:
    """Load the tiny Llama with all dictionaries, as `llama` serves it."""
    folder = tmp_path_factory.mktemp("api")
    sections = {"dictionary_dirs": (folder / "dictionaries",), "presets_dir": folder / "presets"}
    with SteeredModel(LocalBackend(llama.settings.model_copy(update=sections))) as model:
        yield model


@pytest.fixture(params=["local", "remote"])
def model(request: pytest.FixtureRequest) -> SteeredModel:
    """Give the model in this process, and then the same model behind a server."""
    found: SteeredModel = request.getfixturevalue(request.param)
    return found

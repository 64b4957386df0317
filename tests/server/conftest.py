"""One runtime over the tiny model for all tests of the HTTP layer, and a client that needs no socket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.runtime import Runtime, build_runtime
from steerserve.server.app import create_app
from tests.server.asking import client_of
from tests.tiny import tiny_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import httpx
    from fastapi import FastAPI

    from steerserve.core.config import Settings


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def settings(tiny_folder: Path) -> Settings:
    return tiny_settings(tiny_folder, engine={"threads": 1})


@pytest.fixture(scope="session")
def runtime(settings: Settings) -> Iterator[Runtime]:
    with build_runtime(settings) as started:
        yield started


@pytest.fixture
def build(settings: Settings) -> Iterator[Callable[..., Runtime]]:
    """Build another runtime over the same files, with other settings; it is not started, but stopped in the end."""
    built = []

    def build_with(**sections: dict[str, Any]) -> Runtime:
        values = settings.model_dump()
        for name, section in sections.items():
            values[name] = {**values[name], **section}
        built.append(build_runtime(type(settings).model_validate(values)))
        return built[-1]

    yield build_with
    for started in built:
        started.stop()


@pytest.fixture
def app(runtime: Runtime) -> FastAPI:
    return create_app(runtime)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as opened:
        yield opened

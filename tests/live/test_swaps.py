"""Dictionaries swapped under load over a real socket: nothing fails, nothing is mixed, nothing grows."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from steerserve.runtime import build_runtime
from tests.live.conftest import serving
from tests.tiny import tiny_sae_folder, tiny_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.live.conftest import LiveServer

pytestmark = pytest.mark.slow

NUM_SWAPS = 100
NUM_CLIENTS = 6
D_SAE = 32_768
HEADERS = {"authorization": "Bearer admin-key"}


@pytest.fixture(scope="module")
def swapping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Serve the tiny model with a dictionary `res0`, and two others to put in its place."""
    folder = tmp_path_factory.mktemp("swaps")
    for seed, name in enumerate("ab"):
        tiny_sae_folder(folder / "dictionaries" / name, d_sae=D_SAE, seed=seed)
    settings = tiny_settings(folder, engine={"threads": 1}, server={"admin_keys": ["admin-key"]})
    with serving(build_runtime(settings)) as started:
        yield started


def body(number: int, **fields: object) -> dict[str, Any]:
    """Ask for something that the dictionary changes."""
    return {
        "model": "tiny",
        "prompt": f"request {number % 3}",
        "max_tokens": 12,
        "temperature": 0,
        "steering": [{"feature": 3, "scale": 20.0}],
        **fields,
    }


class Swapped:
    """A client that swaps, and clients that generate meanwhile."""

    def __init__(self, client: httpx.AsyncClient, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.is_done = False
        self.sizes: list[int] = []

    async def load(self, name: str) -> str:
        """Put a dictionary in the place of `res0`; return its sha256."""
        asked = {"id": "res0", "source": f"path:{self.folder / name}"}
        response = await self.client.post("/admin/dictionaries", json=asked)
        assert response.status_code == 201, response.text
        return str(response.json()["sha256"])

    async def ask(self, number: int) -> tuple[int, str, str]:
        """Return which request it was, the contents that the receipt names, and the text."""
        response = await self.client.post("/v1/completions", json=body(number))
        assert response.status_code == 200, response.text
        answer = response.json()
        return number % 3, answer["steering"]["edits"][0]["sha256"], answer["choices"][0]["text"]

    async def ask_on(self, first: int) -> list[tuple[int, str, str]]:
        """Ask until the swapping is over."""
        found: list[tuple[int, str, str]] = []
        while not self.is_done:
            found.append(await self.ask(first + len(found)))
        return found

    async def swap_on(self) -> None:
        """Swap, and look at the size of the process after each."""
        process = psutil.Process()
        try:
            for number in range(NUM_SWAPS):
                await self.load("ab"[number % 2])
                self.sizes.append(process.memory_info().rss)
        finally:
            self.is_done = True


async def test_a_hundred_swaps_under_load(swapping: LiveServer) -> None:
    folder = swapping.runtime.settings.dictionary_dirs[0]
    url = f"http://127.0.0.1:{swapping.port}"
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=120) as client:
        swapped = Swapped(client, folder)
        expected: dict[tuple[int, str], str] = {}
        for name in "ab":
            sha256 = await swapped.load(name)
            weights = (folder / name / "sae_weights.safetensors").read_bytes()
            assert sha256 == hashlib.sha256(weights).hexdigest()
            for number in range(3):
                which, receipt, expected[number, sha256] = await swapped.ask(number)
                assert (which, receipt) == (number, sha256)
        assert len(set(expected.values())) == 6
        *answers, _ = await asyncio.gather(*map(swapped.ask_on, range(NUM_CLIENTS)), swapped.swap_on())
    found = [answer for some in answers for answer in some or ()]
    assert {sha256 for _, sha256, _ in found} == {sha256 for _, sha256 in expected}
    assert [text for _, _, text in found] == [expected[number, sha256] for number, sha256, _ in found]
    num_bytes = (folder / "a" / "sae_weights.safetensors").stat().st_size
    assert statistics.mean(swapped.sizes[-30:]) - statistics.mean(swapped.sizes[20:50]) < num_bytes


async def test_the_default_moves_on_while_a_stream_goes_on(swapping: LiveServer) -> None:
    folder = swapping.runtime.settings.dictionary_dirs[0]
    url = f"http://127.0.0.1:{swapping.port}"
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=120) as client:
        whole = (await client.post("/v1/completions", json=body(0, max_tokens=60))).json()["choices"][0]["text"]
        asked = body(0, max_tokens=60, stream=True)
        async with client.stream("POST", "/v1/completions", json=asked) as response:
            lines = response.aiter_lines()
            first = await anext(lines)
            other = {"id": "other", "source": f"path:{folder / 'b'}"}
            assert (await client.post("/admin/dictionaries", json=other)).status_code == 201
            assert (await client.delete("/admin/dictionaries/res0")).json() == {
                "id": "res0",
                "object": "dictionary",
                "deleted": True,
            }
            rest = [line async for line in lines]
        events = [line.removeprefix("data: ") for line in [first, *rest] if line.startswith("data: {")]
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == whole
        listed = (await client.get("/admin/dictionaries")).json()["data"]
        assert [(found["id"], found["default"]) for found in listed] == [("other", True)]
        assert (await client.post("/v1/completions", json=body(0))).status_code == 200
        assert (await client.delete("/admin/dictionaries/res0")).status_code == 404

"""`/admin/dictionaries`: who may use it, what it answers, and what a dictionary's warnings reach."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.dictionaries import weights
from steerserve.model.fitness import free_bytes
from steerserve.server.app import create_app
from tests.server.asking import CHAT, chat, client_of, events_of
from tests.tiny import tiny_sae_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx
    import torch

    from steerserve.runtime import Runtime

ADMIN = "/admin/dictionaries"
KEYS = {"api_keys": ["inference-key"], "admin_keys": ["admin-key"]}
CALLS = [("GET", ADMIN), ("POST", ADMIN), ("DELETE", f"{ADMIN}/res0")]


@pytest.fixture
def own(build: Callable[..., Runtime]) -> Runtime:
    """Build a runtime whose dictionaries a test may change; it generates."""
    runtime = build()
    runtime.start()
    return runtime


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_it_needs_an_admin_key(build: Callable[..., Runtime], method: str, path: str) -> None:
    client = client_of(create_app(build(server=KEYS)))
    assert error_of(await client.request(method, path), 401)["code"] == "invalid_api_key"
    bearer = {"authorization": "Bearer inference-key"}
    assert error_of(await client.request(method, path, headers=bearer), 403)["code"] == "insufficient_scope"


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_without_keys_it_answers_this_machine_alone(runtime: Runtime, method: str, path: str) -> None:
    client = client_of(create_app(runtime), address="203.0.113.5")
    assert error_of(await client.request(method, path), 403)["type"] == "permission_error"


async def test_what_is_loaded_is_listed_described_and_used_by_the_next_request(own: Runtime, tmp_path: Path) -> None:
    client = client_of(create_app(own))
    folder = tiny_sae_folder(own.settings.dictionary_dirs[0] / tmp_path.name, "topk", seed=4)
    loaded = await client.post(ADMIN, json={"id": "new", "source": f"path:{folder}"})
    assert loaded.status_code == 201
    listed = (await client.get(ADMIN)).json()
    assert listed == (await client.get("/v1/dictionaries")).json()
    assert [dictionary["id"] for dictionary in listed["data"]] == ["res0", "new"]
    assert loaded.json() == listed["data"][1] == (await client.get("/v1/dictionaries/new")).json()
    assert loaded.json()["warnings"] == []
    answer = (await client.post(CHAT, json=chat(steering=[{"feature": 3, "scale": 8.0, "dictionary": "new"}]))).json()
    assert answer["steering"]["edits"][0]["sha256"] == loaded.json()["sha256"]
    assert "warnings" not in answer["steering"]
    deleted = await client.delete(f"{ADMIN}/new")
    assert (deleted.status_code, deleted.json()) == (200, {"id": "new", "object": "dictionary", "deleted": True})
    gone = await client.post(CHAT, json=chat(steering=[{"feature": 3, "scale": 8.0, "dictionary": "new"}]))
    assert error_of(gone, 400)["param"] == "steering.edits[0].dictionary"


async def test_what_is_not_loaded_is_404_with_the_nearest_name(runtime: Runtime) -> None:
    error = error_of(await client_of(create_app(runtime)).delete(f"{ADMIN}/res1"), 404)
    assert (error["param"], error["code"]) == ("dictionary_id", "dictionary_not_found")
    assert "Did you mean 'res0'?" in error["message"]


async def test_a_second_load_of_an_id_is_409_while_the_first_goes_on(runtime: Runtime) -> None:
    source = runtime.dictionaries()[0].source
    with runtime.dictionary_library._reserved("res0"):
        response = await client_of(create_app(runtime)).post(ADMIN, json={"id": "res0", "source": source})
    error = error_of(response, 409)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "id", "dictionary_busy")


async def test_what_is_being_loaded_cannot_be_unloaded(runtime: Runtime) -> None:
    with runtime.dictionary_library._reserved("res0"):
        error = error_of(await client_of(create_app(runtime)).delete(f"{ADMIN}/res0"), 409)
    assert error["code"] == "dictionary_busy"
    assert [one.id for one in runtime.dictionaries()] == ["res0"]


async def test_memory_is_looked_at_by_one_load_at_a_time(own: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look(device: torch.device) -> int:
        looks.append(own.dictionary_library._loader.allocating.locked())
        return free_bytes(device)

    monkeypatch.setattr(weights, "free_bytes", look)
    client, source = client_of(create_app(own)), own.dictionaries()[0].source
    posts = [client.post(ADMIN, json={"id": f"load{number}", "source": source}) for number in range(3)]
    assert {response.status_code for response in await asyncio.gather(*posts)} == {201}
    assert looks
    assert all(looks)
    assert not own.dictionary_library._loader.allocating.locked()


async def test_the_warnings_of_what_was_forced_are_in_each_receipt_once(own: Runtime, tmp_path: Path) -> None:
    client = client_of(create_app(own))
    folder = tiny_sae_folder(own.settings.dictionary_dirs[0] / tmp_path.name, model_name="org/other")
    body = {"id": "forced", "source": f"path:{folder}"}
    assert "force" in error_of(await client.post(ADMIN, json=body), 400)["message"]
    [warning] = (await client.post(ADMIN, json={**body, "force": True})).json()["warnings"]
    assert warning == "The dictionary 'forced' was made for the model 'org/other', and this server serves 'tiny'."
    edits = [{"feature": feature, "scale": 1.0, "dictionary": "forced"} for feature in (3, 4)]
    assert (await client.post(CHAT, json=chat(steering=edits))).json()["steering"]["warnings"] == [warning]
    *_, last = events_of(await client.post(CHAT, json=chat(steering=edits, stream=True)))
    assert last["steering"]["warnings"] == [warning]

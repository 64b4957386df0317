"""`/v1/vectors`: made, listed, used in steering, replaced and deleted."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.server.app import create_app
from steerserve.steering.lookups import StoredVector
from tests.server.asking import CHAT, chat, client_of
from tests.tiny import D_MODEL, HOOK_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from steerserve.runtime import Runtime

VECTORS = "/v1/vectors"
LATE = "blocks.1.hook_resid_post"
SETS = {"positive": ["polite words", "more of these"], "negative": ["rude ones", "no thanks", "what"]}


@pytest.fixture(autouse=True)
def clean(runtime: Runtime) -> Iterator[None]:
    """Leave no vectors behind."""
    yield
    for name in runtime.vectors.names():
        runtime.vectors.delete(name)


async def make(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    answer = await client.post(VECTORS, json={"name": "polite", **SETS, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def steered(client: httpx.AsyncClient, *edits: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(CHAT, json=chat(steering=list(edits), max_tokens=12))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def put(runtime: Runtime, name: str, *hooks: str, width: int = D_MODEL, model: str | None = "tiny") -> None:
    layers = {hook: tuple(float(place % 5 - 2) for place in range(width)) for hook in hooks}
    runtime.vectors.put(StoredVector(name, layers, model, "by hand", 0.0), replace=True)


async def test_a_vector_is_made_listed_used_and_deleted(client: httpx.AsyncClient) -> None:
    made = await make(client)
    assert (made["name"], made["object"], made["model"]) == ("polite", "vector", "tiny")
    [layer] = made["layers"]
    assert (layer["hook"], layer["width"]) == (HOOK_NAME, D_MODEL)
    assert 0 <= float(made["notes"]["held_out_auc"]) <= 1
    assert (await client.get(VECTORS)).json()["data"] == [made]
    assert (await client.get(f"{VECTORS}/polite")).json() == made
    plain, pushed = await steered(client), await steered(client, {"vector": "polite", "scale": 4.0})
    assert pushed["choices"][0]["message"] != plain["choices"][0]["message"]
    [edit] = pushed["steering"]["edits"]
    assert (edit["vector"], edit["hook"], edit["mode"], edit["raw_scale"]) == ("polite", HOOK_NAME, "add", 4.0)
    gone = (await client.delete(f"{VECTORS}/polite")).raise_for_status()
    assert gone.json() == {"name": "polite", "object": "vector", "deleted": True}
    assert (await client.get(VECTORS)).json()["data"] == []


async def test_a_stored_vector_is_the_same_as_its_values_sent_inline(client: httpx.AsyncClient) -> None:
    await make(client, hook=LATE, pooling="last")
    [layer] = (await client.get(f"{VECTORS}/polite", params={"values": "true"})).json()["layers"]
    inline = {"hook": LATE, "base64": layer["base64"]}
    values = struct.unpack(f"<{D_MODEL}f", base64.b64decode(layer["base64"]))
    assert sum(value**2 for value in values) ** 0.5 == pytest.approx(layer["norm"])
    for how in ({"scale": 3.0}, {"mode": "remove"}):
        stored = await steered(client, {"vector": "polite", **how})
        sent = await steered(client, {"vector": inline, **how})
        assert stored["choices"] == sent["choices"]
        assert stored["steering"]["fingerprint"] == sent["steering"]["fingerprint"]


async def test_a_fingerprint_names_the_values_and_not_the_name(client: httpx.AsyncClient, runtime: Runtime) -> None:
    put(runtime, "first", HOOK_NAME)
    put(runtime, "second", HOOK_NAME)
    one, two = [(await steered(client, {"vector": name, "scale": 1.0}))["steering"] for name in ("first", "second")]
    assert one["fingerprint"] == two["fingerprint"]
    await make(client, name="first", replace=True)
    changed = (await steered(client, {"vector": "first", "scale": 1.0}))["steering"]
    assert changed["fingerprint"] != one["fingerprint"]
    assert changed["edits"][0]["sha256"] != one["edits"][0]["sha256"]


async def test_a_request_keeps_the_values_that_it_started_with(client: httpx.AsyncClient, runtime: Runtime) -> None:
    put(runtime, "kept", HOOK_NAME)
    steering = runtime.resolve_steering([{"vector": "kept", "scale": 1.0}])
    assert steering is not None
    await make(client, name="kept", replace=True)
    assert steering.edits[0].vector == tuple(float(place % 5 - 2) for place in range(D_MODEL))
    runtime.vectors.delete("kept")
    assert len(steering.fingerprint) == 32


async def test_a_vector_of_several_hook_points_edits_all_of_them(client: httpx.AsyncClient, runtime: Runtime) -> None:
    put(runtime, "deep", HOOK_NAME, LATE)
    put(runtime, "first", HOOK_NAME)
    put(runtime, "second", LATE)
    together = await steered(client, {"vector": "deep", "scale": 2.0})
    apart = await steered(client, {"vector": "first", "scale": 2.0}, {"vector": "second", "scale": 2.0})
    assert [edit["hook"] for edit in together["steering"]["edits"]] == [HOOK_NAME, LATE]
    assert [edit["vector"] for edit in together["steering"]["edits"]] == ["deep", "deep"]
    assert together["choices"] == apart["choices"]
    assert together["steering"]["fingerprint"] == apart["steering"]["fingerprint"]


async def test_hook_points_count_as_edits(client: httpx.AsyncClient, runtime: Runtime) -> None:
    put(runtime, "deep", HOOK_NAME, LATE)
    body = chat(steering=[{"vector": "deep", "scale": 0.1}] * 33)
    answer = await client.post(CHAT, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "steering.edits")
    assert "has 66" in answer.json()["error"]["message"]


async def test_a_contradiction_is_told_with_the_places_that_the_client_wrote(
    client: httpx.AsyncClient, runtime: Runtime
) -> None:
    put(runtime, "deep", HOOK_NAME, LATE)
    edits = [{"vector": "deep", "scale": 1.0}, *[{"feature": 3, "mode": "clamp", "scale": 1.0}] * 2]
    answer = await client.post(CHAT, json=chat(steering=edits))
    assert answer.json()["error"]["param"] == "steering.edits[2]"
    assert "steering.edits[1] and steering.edits[2]" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["polit", "../../etc/passwd", "..", "a/b", "x" * 300, "", "é\n"])
async def test_an_unknown_vector_is_refused_with_the_nearest_name(client: httpx.AsyncClient, name: str) -> None:
    await make(client)
    answer = await client.post(CHAT, json=chat(steering=[{"vector": name, "scale": 1.0}]))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "steering.edits[0].vector")
    assert "polite" in error["message"]


async def test_a_vector_that_does_not_fit_is_listed_with_the_reason_and_refused(
    client: httpx.AsyncClient, runtime: Runtime
) -> None:
    put(runtime, "deeper", "blocks.7.hook_resid_post")
    put(runtime, "wider", HOOK_NAME, width=D_MODEL + 1)
    put(runtime, "others", HOOK_NAME, model="gemma-2-2b")
    put(runtime, "anyones", HOOK_NAME, model=None)
    listed = {one["name"]: one.get("problem") for one in (await client.get(VECTORS)).json()["data"]}
    assert listed["anyones"] is None
    for name, reason in (("deeper", "does not have it"), ("wider", "49 values"), ("others", "gemma-2-2b")):
        assert reason in (listed[name] or "")
        answer = await client.post(CHAT, json=chat(steering=[{"vector": name, "scale": 1.0}]))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "steering.edits[0].vector")
        assert reason in answer.json()["error"]["message"]


async def test_a_damaged_file_is_a_refusal_and_no_failure(client: httpx.AsyncClient, runtime: Runtime) -> None:
    await make(client)
    (runtime.vectors.folder / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    answer = await client.post(CHAT, json=chat(steering=[{"vector": "bad", "scale": 1.0}]))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "steering.edits[0].vector")
    answer = await client.get(f"{VECTORS}/bad")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_vector")
    assert [one["name"] for one in (await client.get(VECTORS)).json()["data"]] == ["polite"]


async def test_a_name_that_is_taken_is_a_conflict(client: httpx.AsyncClient) -> None:
    made = await make(client)
    answer = await client.post(VECTORS, json={"name": "polite", **SETS, "pooling": "last"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "vector_exists")
    assert (await client.get(f"{VECTORS}/polite")).json() == made
    assert (await make(client, pooling="last", replace=True))["sha256"] != made["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"name": "a/b"}, "name", "invalid_value"),
        ({"name": "../up"}, "name", "invalid_value"),
        ({"name": ""}, "name", "invalid_value"),
        ({"name": "a\n"}, "name", "invalid_value"),
        ({"name": None}, "name", "missing_required_parameter"),
        ({"hook": "blocks.0.hook_resid_pots"}, "hook", "invalid_value"),
        ({"pooling": "max"}, "pooling", "invalid_value"),
        ({"positive": ["one", "same"], "negative": ["same", "two"]}, "negative[0]", "invalid_value"),
        ({"overwrite": True}, "overwrite", "unknown_parameter"),
    ],
)
async def test_a_vector_is_refused(
    client: httpx.AsyncClient, runtime: Runtime, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = await client.post(VECTORS, json={"name": "polite", **SETS} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert runtime.vectors.names() == []


async def test_a_folder_that_cannot_be_written_is_no_fault_of_the_request(
    client: httpx.AsyncClient, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setattr(runtime.vectors, "folder", tmp_path / "file")
    answer = await client.post(VECTORS, json={"name": "polite", **SETS})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", "vectors_unwritable")
    assert error["param"] is None
    assert "cannot be written" in error["message"]


@pytest.mark.parametrize("name", ["absent", "%2e%2e", "a%20b", "x" * 100])
async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient, name: str) -> None:
    for method in ("GET", "DELETE"):
        answer = await client.request(method, f"{VECTORS}/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "vector_not_found")


async def test_only_an_admin_makes_and_deletes_vectors(build: Callable[..., Runtime]) -> None:
    runtime = build(server={"api_keys": ["user"], "admin_keys": ["admin"]})
    runtime.start()
    async with client_of(create_app(runtime)) as client:
        keys = {name: {"authorization": f"Bearer {name}"} for name in ("user", "admin", "wrong")}
        body = {"name": "polite", **SETS}
        for name, status in (("wrong", 401), ("user", 403), ("admin", 201)):
            assert (await client.post(VECTORS, json=body, headers=keys[name])).status_code == status
        for name, status in (("wrong", 401), ("user", 200), ("admin", 200)):
            assert (await client.get(VECTORS, headers=keys[name])).status_code == status
            assert (await client.get(f"{VECTORS}/polite", headers=keys[name])).status_code == status
        for name, status in (("wrong", 401), ("user", 403), ("admin", 200)):
            assert (await client.delete(f"{VECTORS}/polite", headers=keys[name])).status_code == status


async def test_without_keys_other_machines_read_vectors_and_make_none(runtime: Runtime) -> None:
    async with client_of(create_app(runtime), address="192.0.2.7") as remote:
        answer = await remote.post(VECTORS, json={"name": "polite", **SETS})
        assert answer.status_code == 403
        assert "this route accepts only requests from the server's own machine" in answer.json()["error"]["message"]
        assert (await remote.get(VECTORS)).status_code == 200

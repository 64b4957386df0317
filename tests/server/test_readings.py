"""`/v1/features/inspect` and `/v1/features/contrast`: what they answer, and what they refuse."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import torch

from steerserve.contrast.examples import FORMAL_SLANGY
from steerserve.engine.readings import text_ids
from steerserve.server.app import create_app
from steerserve.store.records import Calibration, Label
from tests.conformance.random_dictionaries import write_random
from tests.server.asking import CHAT, chat, client_of
from tests.tiny import D_MODEL, HOOK_NAME, IM_START_ID

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from steerserve.runtime import Runtime

INSPECT, CONTRAST = "/v1/features/inspect", "/v1/features/contrast"
SETS = {"positive": list(FORMAL_SLANGY.positive), "negative": list(FORMAL_SLANGY.negative)}


async def refusal(client: httpx.AsyncClient, route: str, body: dict[str, Any], status: int = 400) -> dict[str, Any]:
    answer = await client.post(route, json=body)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_an_inspection_gives_every_token_and_the_whole(client: httpx.AsyncClient, runtime: Runtime) -> None:
    body = {"model": "tiny", "text": "A bridge.", "top": 3, "watch": [5]}
    found = (await client.post(INSPECT, json=body)).raise_for_status().json()
    assert (found["object"], found["model"]) == ("inspection", "tiny")
    assert [token["token"] for token in found["tokens"]] == ["<|im_start|>", *"A bridge."]
    assert [token["position"] for token in found["tokens"]] == list(range(10))
    first, *others = [token["dictionaries"]["res0"] for token in found["tokens"]]
    assert first == {"top": [], "watch": [0.0], "skipped": "special"}
    ids = torch.tensor([text_ids(runtime.tokenizer, "A bridge.")])
    [dictionary] = runtime.dictionaries()

    def encode() -> torch.Tensor:
        return dictionary.encode(runtime.lens.read(ids, [HOOK_NAME])[HOOK_NAME][0])

    acts = runtime.engine.run_exclusive(encode).result(timeout=60)
    for place, token in enumerate(others, start=1):
        assert "skipped" not in token
        assert [one["activation"] for one in token["top"]] == pytest.approx(
            acts[place].topk(3).values.tolist(), rel=1e-4
        )
        assert token["watch"] == pytest.approx([float(acts[place, 5])], rel=1e-4)
    strongest = found["strongest"]["res0"]
    assert [one["activation"] for one in strongest] == pytest.approx(acts[1:].amax(0).topk(3).values.tolist(), rel=1e-4)
    assert all(one["token"] == found["tokens"][one["position"]]["token"] for one in strongest)


async def test_a_transcoder_is_inspected_beside_another_dictionary(
    build: Callable[..., Runtime], tmp_path: Path
) -> None:
    runtime = build()
    runtime.start()
    folder = write_random(
        runtime.settings.dictionary_dirs[0] / tmp_path.name / "code",
        "jumprelu_skip_transcoder",
        "blocks.1.ln2.hook_normalized",
        d_in=D_MODEL,
        d_out=D_MODEL,
        hook_name_out="blocks.1.hook_mlp_out",
    )
    async with client_of(create_app(runtime)) as client:
        (await client.post("/admin/dictionaries", json={"id": "code", "source": f"path:{folder}"})).raise_for_status()
        body = {"text": "A bridge.", "dictionaries": ["code", "res0"], "top": 2, "watch": [5]}
        found = (await client.post(INSPECT, json=body)).raise_for_status().json()
    assert set(found["strongest"]) == {"code", "res0"}
    [dictionary] = [one for one in runtime.dictionaries() if one.id == "code"]
    ids = torch.tensor([text_ids(runtime.tokenizer, "A bridge.")])

    def encode() -> torch.Tensor:
        return dictionary.encode(runtime.lens.read(ids, dictionary.hook_names)[dictionary.read_hook_name][0])

    acts = runtime.engine.run_exclusive(encode).result(timeout=60)
    for place, token in enumerate(found["tokens"][1:], start=1):
        assert token["dictionaries"]["code"]["watch"] == pytest.approx([float(acts[place, 5])], rel=1e-4, abs=1e-5)


async def test_a_conversation_is_inspected_in_the_models_template(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "top": 1}
    found = (await client.post(INSPECT, json=body)).raise_for_status().json()
    text = "".join(token["token"] for token in found["tokens"])
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n")
    skipped = [token["token_id"] for token in found["tokens"] if token["dictionaries"]["res0"].get("skipped")]
    assert set(skipped) == {IM_START_ID, IM_START_ID + 1}
    longer = (await client.post(INSPECT, json={**body, "add_generation_prompt": True})).raise_for_status().json()
    assert len(longer["tokens"]) > len(found["tokens"])


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "text", "invalid_value"),
        ({"text": "a", "messages": [{"role": "user", "content": "a"}]}, "text", "invalid_value"),
        ({"text": ""}, "text", "invalid_value"),
        ({"text": 5}, "text", "invalid_type"),
        ({"text": "a" * 128}, "text", "context_length_exceeded"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"text": "a", "tops": 5}, "tops", "unknown_parameter"),
        ({"text": "a", "top": 65}, "top", "invalid_value"),
        ({"text": "a", "top": -1}, "top", "invalid_value"),
        ({"text": "a", "watch": [1, 96]}, "watch[1]", "invalid_value"),
        ({"text": "a", "watch": [-1]}, "watch[0]", "invalid_value"),
        ({"text": "a", "watch": [1] * 65}, "watch", "invalid_value"),
        ({"text": "a", "dictionaries": ["res1"]}, "dictionaries[0]", "invalid_value"),
        ({"text": "a", "dictionaries": ["res0", "res0", "res1"]}, "dictionaries[2]", "invalid_value"),
    ],
)
async def test_an_inspection_is_refused(client: httpx.AsyncClient, body: dict[str, Any], param: str, code: str) -> None:
    error = await refusal(client, INSPECT, body)
    assert (error["param"], error["code"]) == (param, code)


async def test_another_model_is_not_served(client: httpx.AsyncClient) -> None:
    for route, body in ((INSPECT, {"text": "a"}), (CONTRAST, SETS), ("/v1/vectors", {"name": "a", **SETS})):
        assert (await refusal(client, route, {**body, "model": "gpt"}, 404))["code"] == "model_not_found"


async def test_a_contrast_names_features_with_what_is_known_of_them(
    client: httpx.AsyncClient, runtime: Runtime
) -> None:
    found = (await client.post(CONTRAST, json={**SETS, "limit": 7})).raise_for_status().json()
    assert (found["object"], found["dictionary"], len(found["data"])) == ("contrast", "res0", 7)
    first = found["data"][0]
    assert found["held_out_auc"] == first["held_out_auc"]
    assert first["mean_difference"] == pytest.approx(first["positive_mean"] - first["negative_mean"])
    assert (first["label"], first["role"], first["output_score"], first["dose"]) == (None, None, None, None)
    [dictionary] = runtime.dictionaries()
    store = runtime.stores.for_writing(dictionary, "tiny")
    store.set_label(first["feature"], Label("politeness", "person"))
    store.write_calibrations({first["feature"]: Calibration(dose=12.5, output_score=0.3)})
    try:
        again = (await client.post(CONTRAST, json={**SETS, "limit": 7})).raise_for_status().json()
    finally:
        store.path.unlink()
    known = {"label": "politeness", "role": "writes", "output_score": 0.3, "dose": 12.5}
    assert again["data"][0] == first | known


async def test_what_a_contrast_proposes_can_be_sent_as_it_is(client: httpx.AsyncClient) -> None:
    # Nothing but two characters, so that something is found whatever the random model makes of them.
    sets = {"positive": ["A" * count for count in range(3, 11)], "negative": ["7" * count for count in range(3, 11)]}
    found = (await client.post(CONTRAST, json=sets)).raise_for_status().json()
    assert found["steering"], found["data"][:3]
    assert found["warnings"] == []
    answer = (await client.post(CHAT, json=chat(steering=found["steering"]))).raise_for_status().json()
    assert [edit["feature"] for edit in answer["steering"]["edits"]] == [edit["feature"] for edit in found["steering"]]
    none = (await client.post(CONTRAST, json={**sets, "max_edits": 0})).raise_for_status().json()
    assert (none["steering"], none["warnings"]) == ([], [])


async def test_too_few_texts_are_warned_of_and_steer_nothing(client: httpx.AsyncClient) -> None:
    found = (await client.post(CONTRAST, json={"positive": ["aaa", "aab"], "negative": ["zzz", "zzy"]})).json()
    assert found["steering"] == []
    assert len(found["warnings"]) == 2


async def test_texts_that_are_sent_again_prove_nothing(client: httpx.AsyncClient) -> None:
    sets = {"positive": ["AAA", "AAAA"], "negative": ["777", "7777"]}
    once = (await client.post(CONTRAST, json=sets)).raise_for_status().json()
    again = (await client.post(CONTRAST, json={name: texts * 10 for name, texts in sets.items()})).json()
    assert again["data"] == once["data"]
    assert again["data"][0]["p_value"] > 0.3
    assert again["steering"] == []
    assert again["warnings"] == ["Repeated texts count once: 36 repetitions were ignored.", *once["warnings"]]


async def test_a_few_texts_against_many_can_be_told_from_chance(client: httpx.AsyncClient) -> None:
    sets = {"positive": ["A" * count for count in (3, 4, 5)], "negative": ["7" * count for count in range(3, 33)]}
    found = (await client.post(CONTRAST, json=sets)).raise_for_status().json()
    assert found["data"][0]["p_value"] <= 0.05
    assert found["warnings"] == []


@pytest.mark.slow
@pytest.mark.parametrize("route", [CONTRAST, "/v1/vectors"])
@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ({"positive": None}, "positive", "missing_required_parameter"),
        ({"positive": "text"}, "positive", "invalid_type"),
        ({"positive": ["one"]}, "positive", "invalid_value"),
        ({"positive": ["a"] * 201}, "positive", "invalid_value"),
        ({"negative": ["a", ""]}, "negative[1]", "invalid_value"),
        ({"negative": ["a", 5]}, "negative[1]", "invalid_type"),
        ({"negative": ["a", "b" * 20_001]}, "negative[1]", "invalid_value"),
        ({"negative": ["a", "b" * 128]}, "negative[1]", "context_length_exceeded"),
        ({"negative": ["c", "<|im_end|>"]}, "negative[1]", "invalid_value"),
        ({"negative": ["c", "a"]}, "negative[1]", "invalid_value"),
        ({"negative": ["c", "c"]}, "negative", "invalid_value"),
        ({"negatives": ["a", "b"]}, "negatives", "unknown_parameter"),
    ],
)
async def test_sets_of_texts_are_refused(
    client: httpx.AsyncClient, route: str, changed: dict[str, Any], param: str, code: str
) -> None:
    body = {"positive": ["a", "b"], "negative": ["c", "d"]} | ({"name": "x"} if route != CONTRAST else {}) | changed
    error = await refusal(client, route, body)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"dictionary": "res1"}, "dictionary"),
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"max_edits": 17}, "max_edits"),
    ],
)
async def test_a_contrast_is_refused(client: httpx.AsyncClient, changed: dict[str, Any], param: str) -> None:
    assert (await refusal(client, CONTRAST, SETS | changed))["param"] == param


async def test_nothing_is_read_while_the_server_is_not_ready(build: Callable[..., Runtime]) -> None:
    async with client_of(create_app(build())) as client:
        for route, body in ((INSPECT, {"text": "a"}), (CONTRAST, SETS), ("/v1/vectors", {"name": "a", **SETS})):
            assert (await refusal(client, route, body, 503))["code"] == "service_unavailable"


async def test_many_readings_at_once_are_all_answered(client: httpx.AsyncClient) -> None:
    bodies = [{"text": letter * 40, "top": 2} for letter in "abcdefgh"]
    alone = [(await client.post(INSPECT, json=body)).json() for body in bodies]
    together = await asyncio.gather(*(client.post(INSPECT, json=body) for body in bodies))
    assert [answer.json() for answer in together] == alone

"""`features` on the generating routes: what tokens carry, streaming and not, and what is refused."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from steerserve.store.records import Label
from tests.server.asking import CHAT, COMPLETIONS, chat, completion, events_of
from tests.server.test_malformed import any_json
from tests.tiny import IM_END_ID, tiny_sae_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from steerserve.runtime import Runtime

pytestmark = pytest.mark.slow

ROUTES = [(CHAT, chat), (COMPLETIONS, completion)]
INSPECT = "/v1/features/inspect"
EDIT = [{"feature": 3, "mode": "clamp", "scale": 12.0}]


@pytest.fixture
def second(runtime: Runtime, tiny_folder: Path) -> Iterator[str]:
    """Load a narrower TopK dictionary beside the default one."""
    folder = tiny_folder / "dictionaries" / "narrow"
    if not folder.exists():
        tiny_sae_folder(folder, "topk", d_sae=24)
    runtime.dictionary_library.load("narrow", f"path:{folder}")
    yield "narrow"
    runtime.dictionary_library.unload("narrow")


async def whole(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    choices: list[dict[str, Any]] = answer.json()["choices"]
    return choices


async def streamed(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return each choice's chunks."""
    events = events_of(await client.post(path, json=body | {"stream": True}))
    chunks: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        for choice in event["choices"]:
            chunks.setdefault(choice["index"], []).append(choice)
    return [chunks[index] for index in sorted(chunks)]


def text_of(choice: dict[str, Any]) -> str:
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.mark.parametrize(("path", "make"), ROUTES)
@pytest.mark.parametrize("steering", [None, EDIT])
async def test_a_choice_carries_an_entry_for_each_of_its_tokens(
    client: httpx.AsyncClient, path: str, make: Callable[..., dict[str, Any]], steering: object
) -> None:
    [plain] = await whole(client, path, make(steering=steering, logprobs=1 if path == COMPLETIONS else True))
    [choice] = await whole(client, path, make(steering=steering, features={"top": 3, "watch": [3, 5]}))
    assert text_of(choice) == text_of(plain)
    assert "features" not in plain
    assert "prompt_features" not in choice
    tokens = choice["features"]
    assert [entry.keys() for entry in tokens] == [{"token", "token_id", "position", "dictionaries"}] * 4
    assert "".join(entry["token"] for entry in tokens) == text_of(choice)
    positions = [entry["position"] for entry in tokens]
    assert positions == list(range(positions[0], positions[0] + 4))
    for entry in tokens:
        found = entry["dictionaries"]["res0"]
        assert len(found["watch"]) == 2
        acts = [one["activation"] for one in found["top"]]
        assert len(acts) == 3
        assert acts == sorted(acts, reverse=True)
        assert found["top"][0].keys() == {"feature", "activation", "label"}
        assert found.get("edited") == (None if steering is None else {"3": 12.0})


@pytest.mark.parametrize("features", [True, {}, {"top": 8, "dictionaries": ["res0"], "watch": [], "prompt": False}])
async def test_true_stands_for_the_defaults(client: httpx.AsyncClient, features: object) -> None:
    [choice] = await whole(client, CHAT, chat(features=features))
    assert choice["features"] == (await whole(client, CHAT, chat(features={"top": 8})))[0]["features"]
    assert {len(entry["dictionaries"]["res0"]["top"]) for entry in choice["features"]} == {8}


@pytest.mark.parametrize("features", [None, False])
async def test_null_and_false_ask_for_nothing(client: httpx.AsyncClient, features: object) -> None:
    [choice] = await whole(client, CHAT, chat(features=features))
    assert "features" not in choice


@pytest.mark.parametrize(("path", "make"), ROUTES)
@pytest.mark.parametrize(
    "more", [{}, {"n": 3, "temperature": 1.0, "seed": 5}, {"stop": ["e"], "seed": 9, "temperature": 1.0}]
)
async def test_a_stream_carries_the_entries_of_the_whole_answer(
    client: httpx.AsyncClient, path: str, make: Callable[..., dict[str, Any]], more: dict[str, Any]
) -> None:
    body = make(features={"top": 4, "watch": [1], "prompt": True}, steering=EDIT, max_tokens=20, **more)
    choices = await whole(client, path, body)
    for choice, chunks in zip(choices, await streamed(client, path, body), strict=True):
        first = next(place for place, chunk in enumerate(chunks) if "features" in chunk)
        assert first <= 1
        assert chunks[first]["features"] == choice["prompt_features"]
        rest = [entry for chunk in chunks[first + 1 :] for entry in chunk.get("features", [])]
        assert rest == choice["features"]
        for chunk in chunks[first:]:
            said = chunk["text"] if path == COMPLETIONS else chunk["delta"].get("content", "")
            assert not said or "features" in chunk
    assert len({str(choice["features"]) for choice in choices}) == len(choices)


async def test_with_one_choice_the_very_first_chunk_has_the_prompt(client: httpx.AsyncClient) -> None:
    [[first, second, *_]] = await streamed(client, CHAT, chat(features={"prompt": True}))
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert "".join(entry["token"] for entry in first["features"]).endswith("<|im_start|>assistant\n")
    assert [entry["position"] for entry in first["features"]] == list(range(len(first["features"])))
    assert second["features"][0]["position"] == len(first["features"]) - 1
    assert second["features"][0]["dictionaries"] == first["features"][-1]["dictionaries"]


async def test_a_prompts_entries_are_those_of_an_inspection(client: httpx.AsyncClient) -> None:
    asked = {"top": 5, "watch": [7]}
    [choice] = await whole(client, CHAT, chat(features={**asked, "prompt": True}))
    body = {"messages": chat()["messages"], "add_generation_prompt": True, **asked}
    inspected = (await client.post(INSPECT, json=body)).raise_for_status().json()["tokens"]
    assert len(inspected) == len(choice["prompt_features"])
    for mine, its in zip(choice["prompt_features"], inspected, strict=True):
        assert (mine["token"], mine["token_id"], mine["position"]) == (its["token"], its["token_id"], its["position"])
        one, other = mine["dictionaries"]["res0"], its["dictionaries"]["res0"]
        assert one.get("skipped") == other.get("skipped")
        assert one["watch"] == pytest.approx(other["watch"], abs=1e-4)
        assert [top["feature"] for top in one["top"]] == [top["feature"] for top in other["top"]]


async def test_generated_entries_are_what_the_dictionary_encodes_of_the_same_text(
    client: httpx.AsyncClient, runtime: Runtime
) -> None:
    [choice] = await whole(client, COMPLETIONS, completion(features={"watch": [*range(64)]}, max_tokens=12))
    ids = runtime.tokenizer.encode_plain("hi") + [entry["token_id"] for entry in choice["features"]]
    [dictionary] = runtime.dictionaries()

    def encode() -> torch.Tensor:
        return dictionary.encode(
            runtime.lens.read(torch.tensor([ids]), [dictionary.hook_name])[dictionary.hook_name][0]
        )

    acts = runtime.engine.run_exclusive(encode).result(timeout=60)
    for entry in choice["features"]:
        watched = entry["dictionaries"]["res0"]["watch"]
        assert watched == pytest.approx(acts[entry["position"], :64].tolist(), abs=1e-4)


async def test_several_dictionaries_come_by_their_ids_in_the_order_of_the_request(
    client: httpx.AsyncClient, second: str
) -> None:
    features = {"dictionaries": [second, "res0", second], "watch": [23], "top": 2}
    [choice] = await whole(client, CHAT, chat(features=features))
    for entry in choice["features"]:
        assert list(entry["dictionaries"]) == [second, "res0"]
        assert all(len(found["watch"]) == 1 for found in entry["dictionaries"].values())


async def test_labels_come_along(client: httpx.AsyncClient, runtime: Runtime) -> None:
    [choice] = await whole(client, CHAT, chat(features={"top": 1}))
    feature = choice["features"][0]["dictionaries"]["res0"]["top"][0]["feature"]
    [dictionary] = runtime.dictionaries()
    store = runtime.stores.for_writing(dictionary, runtime.model_id)
    store.set_label(feature, Label("bridges", "person"))
    try:
        [choice] = await whole(client, CHAT, chat(features={"top": 1}))
        assert choice["features"][0]["dictionaries"]["res0"]["top"][0]["label"] == "bridges"
    finally:
        store.set_label(feature, None)


async def test_a_token_that_ends_the_answer_has_no_entry_as_it_has_no_logprob(client: httpx.AsyncClient) -> None:
    ending = {"logit_bias": {str(IM_END_ID): 100}, "min_tokens": 3}
    [choice] = await whole(client, CHAT, chat(features=True, logprobs=True, max_tokens=20, **ending))
    assert choice["finish_reason"] == "stop"
    assert len(choice["features"]) == len(choice["logprobs"]["content"]) == 3
    [none] = await whole(client, CHAT, chat(features=True, logit_bias=ending["logit_bias"], max_tokens=20))
    assert none["features"] == []


async def test_a_completion_that_only_reads_has_its_prompt_alone(client: httpx.AsyncClient) -> None:
    body = completion(prompt=["ab", "cde"], max_tokens=0, echo=True, features={"prompt": True})
    first, second = await whole(client, COMPLETIONS, body)
    assert [len(choice["prompt_features"]) for choice in (first, second)] == [2, 3]
    assert [choice["features"] for choice in (first, second)] == [[], []]
    chunks = await streamed(client, COMPLETIONS, body)
    assert [chunks[0][0]["features"], chunks[1][0]["features"]] == [c["prompt_features"] for c in (first, second)]


REFUSED: list[tuple[object, str, str, list[str]]] = [
    ("all", "features", "invalid_type", ["a boolean or an object"]),
    (1, "features", "invalid_type", ["a boolean or an object"]),
    ([8], "features", "invalid_type", ["a boolean or an object"]),
    ({"topp": 8}, "features.topp", "unknown_parameter", ["'top'"]),
    ({"x": None}, "features.x", "unknown_parameter", ["top, watch, dictionaries, prompt"]),
    ({"top": 65}, "features.top", "invalid_value", ["at most 64"]),
    ({"top": -1}, "features.top", "invalid_value", ["at least 0"]),
    ({"top": 8.0}, "features.top", "invalid_type", ["an integer"]),
    ({"top": "8"}, "features.top", "invalid_type", ["an integer"]),
    ({"top": True}, "features.top", "invalid_type", ["an integer"]),
    ({"watch": 5}, "features.watch", "invalid_type", ["an array"]),
    ({"watch": [5, "6"]}, "features.watch[1]", "invalid_type", ["an integer"]),
    ({"watch": [5, 96]}, "features.watch[1]", "invalid_value", ["'res0'", "0 to 95", "96"]),
    ({"watch": [-1]}, "features.watch[0]", "invalid_value", ["0 to 95"]),
    ({"watch": [10**400]}, "features.watch[0]", "invalid_value", []),
    ({"watch": [1] * 65}, "features.watch", "invalid_value", ["at most 64"]),
    ({"dictionaries": "res0"}, "features.dictionaries", "invalid_type", ["an array"]),
    ({"dictionaries": ["res0", "res1"]}, "features.dictionaries[1]", "invalid_value", ["'res1'", "'res0'"]),
    ({"prompt": 1}, "features.prompt", "invalid_type", ["a boolean"]),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("features", "param", "code", "said"), REFUSED)
async def test_what_cannot_be_watched_is_refused_where_it_is_written(
    client: httpx.AsyncClient, features: object, param: str, code: str, said: list[str], stream: bool
) -> None:
    for path, make in ROUTES:
        response = await client.post(path, json=make(features=features, stream=stream))
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, param, code)
        assert all(one in error["message"] for one in said), error["message"]


async def test_no_value_is_answered_with_a_5xx(client: httpx.AsyncClient) -> None:
    source = random.Random(8)
    statuses = set()
    for _ in range(300):
        keys = ["top", "watch", "dictionaries", "prompt", "x"]
        whole_value = any_json(source) if source.random() < 0.2 else {}
        value = whole_value or {source.choice(keys): any_json(source) for _ in range(source.choice([1, 1, 2]))}
        body = chat(features=value, max_tokens=2, stream=source.random() < 0.3)
        response = await client.post(CHAT, json=body)
        assert response.status_code in {200, 400}, body
        assert 'data: {"error"' not in response.text, body
        if response.status_code == 400:
            assert str(response.json()["error"]["param"]).startswith("features"), body
        statuses.add(response.status_code)
    assert statuses == {200, 400}


async def test_a_feature_must_be_one_of_every_dictionary_that_is_named(client: httpx.AsyncClient, second: str) -> None:
    response = await client.post(CHAT, json=chat(features={"dictionaries": ["res0", second], "watch": [5, 40]}))
    error = response.json()["error"]
    assert error["param"] == "features.watch[1]"
    assert "'narrow' has features 0 to 23" in error["message"]


async def test_a_prompt_that_would_fill_the_memory_is_refused(client: httpx.AsyncClient) -> None:
    features = {"prompt": True, "top": 64, "watch": [*range(64)]}
    response = await client.post(COMPLETIONS, json=completion(prompt="x" * 100, n=64, features=features))
    assert response.json()["error"]["param"] == "features.prompt"
    assert (await client.post(COMPLETIONS, json=completion(prompt="x" * 100, features=features))).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_would_fill_the_memory_is_refused(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr("steerserve.requests.watching._MAX_ENTRIES", 128 * 80 * 128 - 1)
    asked = {"n": 128, "max_tokens": 80, "features": {"top": 64, "watch": [*range(64)]}, "stream": stream}
    arms = [{"name": str(place)} for place in range(8)]
    for path, body in (
        (CHAT, chat(**asked)),
        (COMPLETIONS, completion(**asked)),
        ("/v1/compare", chat(**asked | {"n": 16}, arms=arms)),
    ):
        response = await client.post(path, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "features.top"), path
        assert str(128 * 80 * 128) in error["message"]
        assert "'max_tokens'" in error["message"]


async def test_where_the_length_is_left_open_it_is_cut_to_what_can_be_watched(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerserve.requests.watching._MAX_ENTRIES", 2 * 20 * 8)
    monkeypatch.setattr("steerserve.requests.watching._LEAST_TOKENS", 20)
    body = chat(n=2, ignore_eos=True, features=True)
    del body["max_tokens"]
    for choice in await whole(client, CHAT, body):
        assert (choice["finish_reason"], len(choice["features"])) == ("length", 20)
    compared = await client.post("/v1/compare", json=body | {"n": 1, "arms": [{"name": "a"}, {"name": "b"}]})
    for arm in compared.json()["arms"]:
        assert [len(sample["features"]) for sample in arm["samples"]] == [20]
    refused = await client.post(CHAT, json=body | {"n": 3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "features.top")


async def test_what_takes_long_is_written_in_a_thread_and_reads_the_same(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, body in (
        (CHAT, chat(features={"prompt": True})),
        (COMPLETIONS, completion(features={"prompt": True})),
        ("/v1/compare", chat(features={"prompt": True}, arms=[{"name": "a"}], seed=1, metrics=False)),
    ):
        monkeypatch.undo()
        expected = entries_of(await client.post(path, json=body | {"stream": True}))
        monkeypatch.setattr("steerserve.requests.watching._MAX_AT_ONCE", 0)
        assert entries_of(await client.post(path, json=body | {"stream": True})) == expected


def entries_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Return all that a stream of tokens gives, in order."""
    found: list[dict[str, Any]] = []
    for line in response.text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            parts = event.get("choices", [event])
            found += [entry for part in parts for entry in part.get("features", [])]
    assert len(found) > 4
    return found


async def test_the_document_describes_what_is_asked_and_what_is_answered(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    field = schemas["ChatCompletionRequest"]["properties"]["features"]
    assert {"$ref": "#/components/schemas/FeatureOptions"} in field["anyOf"]
    assert schemas["FeatureOptions"]["additionalProperties"] is False
    for name in ("ChatChoice", "CompletionChoice"):
        assert {"features", "prompt_features"} <= schemas[name]["properties"].keys()
    assert schemas["WatchedToken"]["properties"].keys() == {"token", "token_id", "position", "dictionaries"}

"""Listings, health, readiness, version, metrics and the OpenAPI document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

import steerserve
from steerserve.server.app import create_app
from tests.server.asking import CHAT, COMPLETIONS, chat, client_of, completion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx
    from fastapi import FastAPI

    from steerserve.runtime import Runtime


async def test_the_model_is_listed_and_found_by_its_id(client: httpx.AsyncClient, runtime: Runtime) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["parent"]) == ("tiny", "model", None)
    assert model["max_model_len"] == runtime.context_length
    assert (await client.get("/v1/models/tiny")).json() == model


async def test_dictionaries_are_listed_and_found_by_their_id(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/dictionaries")).json()
    assert (listed["object"], listed["has_more"]) == ("list", False)
    (dictionary,) = listed["data"]
    assert (dictionary["id"], dictionary["d_sae"], dictionary["default"]) == ("res0", 96, True)
    assert (await client.get("/v1/dictionaries/res0")).json() == dictionary


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
async def test_probes_may_ask_without_a_body(client: httpx.AsyncClient, method: str, path: str) -> None:
    assert (await client.request(method, path)).status_code == 200


async def test_the_version_is_that_of_the_package(client: httpx.AsyncClient) -> None:
    found = (await client.get("/version")).json()
    assert found["version"] == steerserve.__version__
    assert (found["device"], found["dtype"]) == ("cpu", "float32")
    assert {"torch", "transformers", "transformer_lens", "sae_lens"} < found.keys()


async def test_a_server_that_is_loading_is_healthy_and_not_ready(build: Callable[..., Runtime]) -> None:
    client = client_of(create_app(build()))
    assert (await client.get("/health")).json() == {"status": "ok"}
    response = await client.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"status": "loading", "reasons": ["The model is still loading."]}


async def test_a_server_that_is_ready_gives_no_reasons(client: httpx.AsyncClient) -> None:
    assert (await client.get("/ready")).json() == {"status": "ready", "reasons": []}


async def test_metrics_count_what_was_generated(app: FastAPI) -> None:
    client = client_of(app)
    before = await scrape(client)
    await client.post(CHAT, json=chat(n=2, ignore_eos=True))
    await client.post(COMPLETIONS, json=completion(prompt="[" * 9, ignore_eos=True))
    await client.post(COMPLETIONS, json=completion(model="other"))
    after = await scrape(client)
    gained = {name: after[name] - before.get(name, 0.0) for name in after}
    assert gained['steerserve_generation_tokens_total{model_name="tiny"}'] == 12
    assert gained['steerserve_request_success_total{finished_reason="length",model_name="tiny"}'] == 3
    assert gained['steerserve_time_to_first_token_seconds_count{model_name="tiny"}'] == 2
    assert gained['steerserve_e2e_request_latency_seconds_count{model_name="tiny"}'] == 2
    assert gained['steerserve_request_generation_tokens_sum{model_name="tiny"}'] == 12
    labels = 'method="POST",route="/v1/completions",status="404"'
    assert gained[f"steerserve_http_requests_total{{{labels}}}"] == 1
    assert after['steerserve_num_requests_running{model_name="tiny"}'] == 0
    assert after['steerserve_num_slots{model_name="tiny"}'] == 4


async def test_each_app_counts_for_itself(runtime: Runtime) -> None:
    first, second = client_of(create_app(runtime)), client_of(create_app(runtime))
    await first.post(CHAT, json=chat())
    name = 'steerserve_time_to_first_token_seconds_count{model_name="tiny"}'
    assert ((await scrape(first)).get(name), (await scrape(second)).get(name)) == (1.0, None)


async def test_no_client_can_make_metrics_grow_without_end(app: FastAPI) -> None:
    client = client_of(app)
    for number in range(5):
        await client.request(f"BREW{number}", f"/nothing/{number}")
    names = [name for name in await scrape(client) if name.startswith("steerserve_http_requests_total")]
    assert names == ['steerserve_http_requests_total{method="OTHER",route="unmatched",status="404"}']


async def test_every_field_of_the_document_is_described(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    bare = [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, described in schema.get("properties", {}).items()
        if not described.get("description")
    ]
    assert bare == []


async def test_every_route_of_the_document_is_described(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) >= 10
    assert all(operation.get("description") for operation in operations)


async def test_every_reference_of_the_document_leads_somewhere(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert {"ChatCompletionRequest", "CompletionRequest", "ErrorBody"} <= names
    assert names <= set(document["components"]["schemas"])


def references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    for inner in part if isinstance(part, list) else []:
        yield from references(inner)


async def scrape(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    pairs = (re.fullmatch(r"(\S+) (\S+)", line) for line in lines if not line.startswith("#"))
    return {pair[1]: float(pair[2]) for pair in pairs if pair is not None}

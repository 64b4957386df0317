"""Who may call what: two scopes, and this machine alone where there are no keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import pytest
from fastapi import Depends

from steerserve.server.app import create_app
from steerserve.server.keys import require_admin
from tests.server.asking import CHAT, chat, client_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from steerserve.runtime import Runtime

KEYS = {"api_keys": ["inference-key"], "admin_keys": ["admin-kéy"]}


def app_with_admin_route(runtime: Runtime) -> FastAPI:
    app = create_app(runtime)

    @app.get("/admin/probe")
    async def probe(_: Annotated[None, Depends(require_admin)]) -> str:
        return "in"

    return app


@pytest.fixture
def guarded(build: Callable[..., Runtime]) -> FastAPI:
    return app_with_admin_route(build(server=KEYS))


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


@pytest.mark.parametrize("headers", [{}, {"authorization": "inference-key"}, {"authorization": "Basic inference-key"}])
async def test_without_a_key_a_guarded_route_is_401(guarded: FastAPI, headers: dict[str, str]) -> None:
    response = await client_of(guarded).get("/v1/models", headers=headers)
    assert refusal(response) == (401, "authentication_error", "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", "wrong", "inference-key2", "inference-ke", "é", "x" * 5000])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/dictionaries", "/v1/models/x", "/admin/probe"])
async def test_an_unknown_key_is_401(guarded: FastAPI, key: str, path: str) -> None:
    response = await client_of(guarded).get(path, headers=bearer(key))
    assert refusal(response) == (401, "authentication_error", "invalid_api_key")


async def test_the_key_is_checked_before_the_body_is_read(guarded: FastAPI) -> None:
    response = await client_of(guarded).post(CHAT, content=b"{", headers=bearer("wrong"))
    assert response.status_code == 401


@pytest.mark.parametrize("key", ["inference-key", "admin-kéy"])
async def test_both_scopes_may_use_the_api(guarded: FastAPI, key: str) -> None:
    response = await client_of(guarded).get("/v1/models", headers=bearer(key))
    assert response.status_code == 200, response.text


async def test_only_an_admin_key_may_administrate(guarded: FastAPI) -> None:
    client = client_of(guarded)
    assert (await client.get("/admin/probe", headers=bearer("admin-kéy"))).json() == "in"
    response = await client.get("/admin/probe", headers=bearer("inference-key"))
    assert refusal(response) == (403, "permission_error", "insufficient_scope")


@pytest.mark.parametrize("path", ["/health", "/version", "/metrics", "/openapi.json"])
async def test_operations_need_no_key(guarded: FastAPI, path: str) -> None:
    assert (await client_of(guarded).get(path)).status_code == 200


async def test_without_keys_anyone_may_use_the_api_whatever_key_they_send(client: httpx.AsyncClient) -> None:
    assert (await client.post(CHAT, json=chat(), headers=bearer("any"))).status_code == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
async def test_without_keys_this_machine_may_administrate(runtime: Runtime, address: str) -> None:
    client = client_of(app_with_admin_route(runtime), address)
    for host in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
        assert (await client.get("/admin/probe", headers={"host": host})).json() == "in"
    local_page = {"origin": "http://localhost:8000"}
    assert (await client.get("/admin/probe", headers=local_page)).json() == "in"


@pytest.mark.parametrize("address", ["192.168.0.7", "8.8.8.8", "2001:db8::1", "testclient", "::ffff:8.8.8.8"])
async def test_without_keys_no_other_machine_may_administrate(runtime: Runtime, address: str) -> None:
    response = await client_of(app_with_admin_route(runtime), address).get("/admin/probe")
    assert refusal(response) == (403, "permission_error", "insufficient_scope")


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"x-forwarded-for": "8.8.8.8"},
        {"forwarded": "for=8.8.8.8"},
    ],
)
async def test_without_keys_a_web_page_or_proxy_on_this_machine_may_not_administrate(
    runtime: Runtime, headers: dict[str, str]
) -> None:
    response = await client_of(app_with_admin_route(runtime)).get("/admin/probe", headers=headers)
    assert refusal(response) == (403, "permission_error", "insufficient_scope")


async def test_a_preflight_needs_no_key_and_an_answer_names_the_origin(build: Callable[..., Runtime]) -> None:
    app = create_app(build(server={**KEYS, "cors_origins": ["https://page.example"]}))
    headers = {"origin": "https://page.example", "access-control-request-method": "POST"}
    asked = {"access-control-request-headers": "authorization,content-type"}
    response = await client_of(app).options(CHAT, headers=headers | asked)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    assert "x-request-id" in response.headers
    refused = await client_of(app).post(CHAT, json=chat(), headers=headers)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"


def refusal(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["type"], error["code"]

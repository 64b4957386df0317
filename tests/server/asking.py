"""Clients and bodies of requests that the tests of the HTTP layer have in common."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from fastapi import FastAPI

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def client_of(app: FastAPI, address: str = "127.0.0.1") -> httpx.AsyncClient:
    """Make a client that calls `app` without a socket, as if from `address`."""
    transport = httpx.ASGITransport(app, client=(address, 50000))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def chat(**fields: object) -> dict[str, Any]:
    """Give the body of a short chat request with `fields` added."""
    messages = [{"role": "user", "content": "hi"}]
    return {"model": "tiny", "messages": messages, "max_tokens": 4, "temperature": 0} | fields


def completion(**fields: object) -> dict[str, Any]:
    """Give the body of a short completion request with `fields` added."""
    return {"model": "tiny", "prompt": "hi", "max_tokens": 4, "temperature": 0} | fields


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Read a stream's events, which must end with [DONE]."""
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]

"""Nothing that a client can send is the server's fault."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from steerserve.wire.chat import ChatCompletionRequest
from steerserve.wire.completions import CompletionRequest
from steerserve.wire.unsupported import CHAT as CHAT_RULES
from tests.server.asking import CHAT, COMPLETIONS, chat, completion

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

NUM_REQUESTS = 400
"""A few seconds' worth. With 10,000 it passed too."""
STRINGS = (
    "",
    "a",
    "tiny",
    "tiny@x",
    "5",
    "\x00",
    "\u2028",
    "\U0001f600",
    "<|im_end|>",
    "x" * 300,
    "none",
    "user",
    "text",
)
NUMBERS = (0, -1, 1, 2, 0.5, 1e-300, 1e308, -1e308, 2**31, 2**53 + 1, 2**63, -(2**63), 10**400, 96, 259, 1.0)
KEYS = (
    "feature",
    "scale",
    "edits",
    "role",
    "content",
    "type",
    "text",
    "mode",
    "hook",
    "vector",
    "257",
    "include_usage",
)
FIELDS = sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields, *CHAT_RULES} - {"stream"})
SPOILERS = (b"\x00", b"\xff", b"{", b"]", b'"', b"NaN", b"1e999", b"\\ud800", b",", b"")


def any_json(source: random.Random, depth: int = 0) -> object:
    kind = source.randrange(5 if depth > 3 else 8)
    if kind < 3:
        return source.choice((None, True, False, source.choice(NUMBERS), source.choice(STRINGS)))
    if kind < 5:
        return source.choice(NUMBERS) if kind == 3 else source.choice(STRINGS)
    if kind == 5:
        return {source.choice(KEYS): any_json(source, depth + 1) for _ in range(source.randrange(4))}
    return [any_json(source, depth + 1) for _ in range(source.randrange(4))]


def spoiled(source: random.Random, body: bytes) -> bytes:
    place = source.randrange(len(body))
    return body[:place] + source.choice(SPOILERS) + body[place + source.randrange(4) :]


@pytest.mark.parametrize(("path", "make"), [(CHAT, chat), (COMPLETIONS, completion)])
async def test_no_body_is_answered_with_a_5xx(
    client: httpx.AsyncClient, path: str, make: Callable[..., dict[str, object]]
) -> None:
    source = random.Random(path)
    statuses = set()
    for _ in range(NUM_REQUESTS // 2):
        body = make(max_tokens=2, stream=source.random() < 0.2)
        body |= {source.choice(FIELDS): any_json(source) for _ in range(source.choice((1, 1, 2, 3)))}
        content = json.dumps(body).encode()
        if source.random() < 0.3:
            content = spoiled(source, content)
        response = await client.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code in {200, 400, 404}, content
        assert 'data: {"error"' not in response.text, content
        if response.status_code != 200:
            assert response.json()["error"].keys() == {"message", "type", "param", "code"}, content
        statuses.add(response.status_code)
    assert {200, 400} <= statuses

"""Documented fields that are not supported are refused, and taken where they ask for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from steerserve.wire.chat import ChatCompletionRequest
from steerserve.wire.completions import CompletionRequest
from steerserve.wire.unsupported import CHAT as CHAT_RULES
from steerserve.wire.unsupported import COMPLETIONS as COMPLETION_RULES
from tests.server.asking import CHAT, COMPLETIONS, chat, completion

if TYPE_CHECKING:
    import httpx

ASKING_FOR_MORE: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "mp3"},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "x"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "service_tier": "flex",
    "store": True,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "low",
    "web_search_options": {},
    "guided_json": {},
    "structured_outputs": {"json": {}},
    "use_beam_search": True,
    "bad_words": ["x"],
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "continue_final_message": True,
    "echo": True,
    "cache_salt": "x",
    "repeat_penalty": 1.1,
    "skip_special_tokens": False,
}


@pytest.mark.parametrize(("field", "value"), ASKING_FOR_MORE.items())
async def test_a_field_that_asks_for_more_than_there_is_is_refused(
    client: httpx.AsyncClient, field: str, value: object
) -> None:
    response = await client.post(CHAT, json=chat(**{field: value}))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert error["code"] in {"unsupported_parameter", "unsupported_value"}
    assert field in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, rule in CHAT_RULES.items() for value in (None, *rule.harmless)]
    + [("tools", []), ("tools", None), ("functions", []), ("parallel_tool_calls", True), ("user", "me")],
)
async def test_a_field_that_asks_for_nothing_is_taken(client: httpx.AsyncClient, field: str, value: object) -> None:
    response = await client.post(CHAT, json=chat(**{field: value}))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, rule in COMPLETION_RULES.items() for value in (None, *rule.harmless)],
)
async def test_a_completion_field_that_asks_for_nothing_is_taken(
    client: httpx.AsyncClient, field: str, value: object
) -> None:
    response = await client.post(COMPLETIONS, json=completion(**{field: value}))
    assert response.status_code == 200, response.text


async def test_tools_that_must_not_be_called_are_taken(client: httpx.AsyncClient) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    response = await client.post(CHAT, json=chat(tools=tools, tool_choice="none"))
    assert response.status_code == 200, response.text


async def test_unknown_fields_are_ignored(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "user", "content": parts, "mood": "good"}]
    plain = await client.post(CHAT, json=chat())
    extended = await client.post(CHAT, json=chat(messages=messages, wishes=["many"]))
    assert extended.json()["choices"] == plain.json()["choices"]


async def test_an_explicit_null_means_left_out_for_every_optional_field(client: httpx.AsyncClient) -> None:
    nulls: dict[str, None] = dict.fromkeys({*ChatCompletionRequest.model_fields, *CHAT_RULES} - {"model", "messages"})
    assert (await client.post(CHAT, json=chat() | nulls | {"max_tokens": 4})).status_code == 200
    nulls = dict.fromkeys({*CompletionRequest.model_fields, *COMPLETION_RULES} - {"model", "prompt"})
    assert (await client.post(COMPLETIONS, json=completion() | nulls)).status_code == 200


def test_every_field_that_openai_documents_is_known_here() -> None:
    chat_fields = set(chat_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert chat_fields <= {*ChatCompletionRequest.model_fields, *CHAT_RULES}
    completion_fields = set(completion_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert completion_fields <= {*CompletionRequest.model_fields, *COMPLETION_RULES}

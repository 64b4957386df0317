"""Every refusal that the server makes: its status, and OpenAI's error object with all four keys."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import FastAPI, Query

from tests.server.asking import CHAT, COMPLETIONS, chat, client_of, completion

if TYPE_CHECKING:
    import httpx

INVALID = "invalid_request_error"
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def messages(*contents: object, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for content in contents]


MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "no_json": b"hello",
    "cut_off": b'{"model": "tiny", "messages": [',
    "trailing": json.dumps(chat()).encode() + b" x",
    "invalid_utf8": b'{"model": "\xff"}',
    "encoded_surrogate": b'{"model": "\xed\xa0\x80"}',
    "lone_surrogate": b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "raw_control_character": b'{"model": "ti\x00ny"}',
    "nan": b'{"model": "tiny", "temperature": NaN}',
    "infinity": b'{"model": "tiny", "temperature": -Infinity}',
    "same_key_twice": b'{"model": "tiny", "model": "tiny"}',
    "nested_too_deeply": b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "number_too_long": b'{"seed": ' + b"9" * 5000 + b"}",
    "single_quotes": b"{'model': 'tiny'}",
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_body_that_is_no_strict_json_is_refused(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    error = check(response, 400)
    assert error["message"].startswith("The request body is not valid JSON: ")
    assert error["type"] == INVALID


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true"])
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert check(response, 400)["code"] == "invalid_type"


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "é"]
)
async def test_a_body_of_another_content_type_is_refused(client: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {b"content-type": content_type.encode()} if content_type is not None else {}
    error = check(await client.post(CHAT, content=json.dumps(chat()), headers=headers), 400)
    assert "'Content-Type: application/json'" in error["message"]


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"]
)
async def test_json_is_taken_under_each_of_its_names(client: httpx.AsyncClient, content_type: str) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(chat()).encode()
    response = await client.post(CHAT, content=body, headers={"content-type": content_type})
    assert response.status_code == 200, response.text


CHAT_CASES: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": None}, "model", "missing_required_parameter"),
    ({"model": 5}, "model", "invalid_type"),
    ({"model": "tiny@formal"}, "model", "invalid_value"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [5]}, "messages[0]", "invalid_type"),
    ({"messages": messages("hi", 5)}, "messages[1].content", "invalid_type"),
    ({"messages": messages(None)}, "messages[0].content", "missing_required_parameter"),
    ({"messages": messages([{"type": "text", "text": 5}])}, "messages[0].content[0].text", "invalid_type"),
    ({"messages": messages([{"type": "poem", "text": "x"}])}, "messages[0].content[0].type", "invalid_value"),
    ({"messages": messages([IMAGE])}, "messages[0].content[0]", "unsupported_value"),
    ({"messages": messages("x", role="pirate")}, "messages[0].role", "invalid_value"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0]", "unsupported_parameter"),
    ({"messages": messages("x" * 500)}, "messages", "context_length_exceeded"),
    ({"max_tokens": 1000}, "messages", "context_length_exceeded"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"min_p": 1.5}, "min_p", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"n": 1.0}, "n", "invalid_type"),
    ({"n": "5"}, "n", "invalid_type"),
    ({"n": True}, "n", "invalid_type"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": -(2**63) - 1}, "seed", "invalid_value"),
    ({"seed": 10**4000}, "seed", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_type"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", 5]}, "stop[1]", "invalid_type"),
    ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
    ({"stop": ["a"] * 65}, "stop", "invalid_value"),
    ({"stop_token_ids": [259]}, "stop_token_ids[0]", "invalid_value"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]", "invalid_type"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"259": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5", "invalid_type"),
    ({"logit_bias": []}, "logit_bias", "invalid_type"),
    ({"min_tokens": 5}, "min_tokens", "invalid_value"),
    ({"logprobs": 1}, "logprobs", "invalid_type"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 1}, "top_logprobs", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream": False, "stream_options": {}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": 5}, "stream_options", "invalid_type"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "unsupported_value",
    ),
    ({"metadata": {"a": 5}}, "metadata.a", "invalid_type"),
    ({"metadata": {str(number): "x" for number in range(17)}}, "metadata", "invalid_value"),
    ({"user": "x" * 600}, "user", "invalid_value"),
    ({"steering": 5}, "steering", "invalid_type"),
    ({"steering": [{"featur": 1, "scale": 1}]}, "steering.edits[0].featur", "invalid_value"),
    ({"steering": [{"feature": 96, "scale": 1}]}, "steering.edits[0].feature", "invalid_value"),
    (
        {"steering": [{"feature": 1, "scale": 1, "dictionary": "ress0"}]},
        "steering.edits[0].dictionary",
        "invalid_value",
    ),
    ({"steering": {"edits": [], "strenght": 2}}, "steering.strenght", "invalid_value"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param", "code"), CHAT_CASES)
async def test_a_wrong_chat_request_is_refused_with_the_field_before_anything_is_sent(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str | None, code: str, stream: bool
) -> None:
    error = check(await client.post(CHAT, json=chat(**{"stream": stream} | fields)), 400)
    assert (error["type"], error["param"]) == (INVALID, param)
    if not (param or "").startswith("steering."):
        assert error["code"] == code


COMPLETION_CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "missing_required_parameter"),
    ({"prompt": 5}, "prompt", "invalid_type"),
    ({"prompt": {}}, "prompt", "invalid_type"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt", "invalid_value"),
    ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
    ({"prompt": ["a", 5]}, "prompt[1]", "invalid_type"),
    ({"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
    ({"prompt": [True]}, "prompt[0]", "invalid_type"),
    ({"prompt": [[1], [1.5]]}, "prompt[1][0]", "invalid_type"),
    ({"prompt": [1, 259]}, "prompt", "invalid_value"),
    ({"prompt": [[1], [-1]]}, "prompt[1]", "invalid_value"),
    ({"prompt": [10**30]}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 129}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 2, "n": 128}, "prompt", "invalid_value"),
    ({"prompt": "x" * 200}, "prompt", "context_length_exceeded"),
    ({"prompt": "x" * 128}, "prompt", "context_length_exceeded"),
    ({"prompt": "x" * 120, "max_tokens": 9}, "prompt", "context_length_exceeded"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"logprobs": True}, "logprobs", "invalid_type"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"best_of": 3}, "best_of", "unsupported_value"),
    ({"n": 2, "best_of": 3}, "best_of", "unsupported_value"),
    ({"suffix": "end"}, "suffix", "unsupported_value"),
    ({"echo": "yes"}, "echo", "invalid_type"),
]


@pytest.mark.parametrize(("fields", "param", "code"), COMPLETION_CASES)
async def test_a_wrong_completion_request_is_refused_with_the_field(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str
) -> None:
    error = check(await client.post(COMPLETIONS, json=completion(**fields)), 400)
    assert (error["type"], error["param"], error["code"]) == (INVALID, param, code)


async def test_the_context_error_has_the_words_that_clients_look_for(client: httpx.AsyncClient) -> None:
    error = check(await client.post(COMPLETIONS, json=completion(prompt="x" * 200)), 400)
    assert error["message"] == (
        "This model's maximum context length is 128 tokens. However, your prompt is too long: it has 200 tokens. "
        "Please reduce the length of the prompt."
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 3}, "Invalid value for 'temperature': must be at most 2, but got 3."),
        (
            {"messages": []},
            "Invalid value for 'messages': must be an array of at least 1 entry, but got an array of 0.",
        ),
        ({"n": "5"}, "Invalid type for 'n': expected an integer, but got a string instead."),
        (
            {"messages": messages(5)},
            (
                "Invalid type for 'messages[0].content': expected a string or an array of content parts, but got an "
                "integer instead."
            ),
        ),
        ({"model": "gpt"}, "The model 'gpt' does not exist. This server serves 'tiny'."),
    ],
)
async def test_a_message_stands_alone(client: httpx.AsyncClient, fields: dict[str, Any], message: str) -> None:
    assert (await client.post(CHAT, json=chat(**fields))).json()["error"]["message"] == message


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/embeddings", "/v1/chat/completions/", "/%ff%00", "/v1/%ed%a0%80"])
async def test_an_unknown_url_is_404(client: httpx.AsyncClient, path: str) -> None:
    assert check(await client.get(path), 404)["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", COMPLETIONS, "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("OPTIONS", "/v1/models", "GET"),
        ("BREW", "/v1/dictionaries", "GET"),
        ("POST", "/admin/presets/x", "DELETE, GET, PUT"),
    ],
)
async def test_another_method_is_405_and_says_which_are_allowed(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await client.request(method, path)
    assert check(response, 405)["code"] == "method_not_supported"
    assert response.headers["allow"] == allowed
    assert response.json()["error"]["message"].endswith(f"This URL takes {allowed}.")


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"model": LONG}),
        (CHAT, {"features": {LONG: 1}}),
        (CHAT, {"features": {"dictionaries": [LONG]}}),
        (CHAT, {"steering": [{LONG: 1}]}),
        ("/v1/compare", {"arms": [{"name": "a", LONG: 1}]}),
        ("/v1/compare", {"arms": [{"name": "a", "model": LONG}]}),
        ("/v1/compare", {"arms": [{"name": "a", "control_of": LONG}]}),
        ("/admin/train", {LONG: 1}),
    ],
)
async def test_a_long_name_is_refused_quickly_and_never_repeated_whole(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    began = time.perf_counter()
    response = await client.post(path, json=chat(**body) if path != "/admin/train" else body)
    assert response.status_code in {400, 404}
    assert time.perf_counter() - began < 2  # matched whole, such a name takes many seconds
    assert len(response.json()["error"]["param"]) < 200
    assert len(response.content) < 2000


@pytest.mark.parametrize("path", ["/v1/models/gpt", "/v1/models/org/name", "/v1/models/"])
async def test_an_unknown_model_is_404(client: httpx.AsyncClient, path: str) -> None:
    assert check(await client.get(path), 404)["code"] == "model_not_found"
    assert check(await client.post(CHAT, json=chat(model="gpt")), 404)["param"] == "model"


async def test_an_unknown_dictionary_is_404_with_the_nearest_name(client: httpx.AsyncClient) -> None:
    error = check(await client.get("/v1/dictionaries/ress0"), 404)
    assert "Did you mean 'res0'?" in error["message"]
    assert error["code"] == "dictionary_not_found"


async def test_a_wrong_query_parameter_is_refused_like_a_wrong_body(app: FastAPI) -> None:
    @app.get("/probe")
    async def probe(limit: Annotated[int, Query(ge=1)]) -> int:
        return limit

    async with client_of(app) as client:
        assert (await client.get("/probe?limit=5")).json() == 5
        missing = check(await client.get("/probe"), 400)
        assert (missing["param"], missing["code"]) == ("limit", "missing_required_parameter")
        assert check(await client.get("/probe?limit=0"), 400)["code"] == "invalid_value"
        wrong = check(await client.get("/probe?limit=many"), 400)
        assert (wrong["param"], wrong["code"]) == ("limit", "invalid_type")


def check(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check what holds for every refusal, and return the error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body: dict[str, Any] = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"][-1] in ".?0123456789\"'}])"
    assert "Traceback" not in response.text
    return error

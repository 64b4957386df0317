"""`/v1/completions`: prompts of every kind, echo, and log-probabilities in the older shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.asking import COMPLETIONS, completion, events_of

if TYPE_CHECKING:
    import httpx


async def ask(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    response = await client.post(COMPLETIONS, json=completion(**fields))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_an_answer_has_openais_shape(client: httpx.AsyncClient) -> None:
    answer = await ask(client)
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}


async def test_sixteen_tokens_are_generated_unless_said_otherwise(client: httpx.AsyncClient) -> None:
    assert (await ask(client, max_tokens=None, ignore_eos=True))["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("prompt", ["hi", ["hi"], [104, 105], [[104, 105]]])
async def test_a_prompt_is_the_same_in_each_of_its_four_forms(client: httpx.AsyncClient, prompt: object) -> None:
    assert (await ask(client, prompt=prompt))["choices"] == (await ask(client))["choices"]


async def test_several_prompts_give_n_choices_each_in_order(client: httpx.AsyncClient) -> None:
    answer = await ask(client, prompt=["ab", [99, 100]], n=2, echo=True, max_tokens=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"][:2] for choice in answer["choices"]] == ["ab", "ab", "cd", "cd"]
    assert answer["usage"]["prompt_tokens"] == 4


async def test_equal_prompts_without_a_seed_give_different_texts(client: httpx.AsyncClient) -> None:
    answer = await ask(client, prompt=["ab", "ab"], temperature=2, max_tokens=20)
    assert answer["choices"][0]["text"] != answer["choices"][1]["text"]


async def test_no_tokens_at_all_can_be_asked_for(client: httpx.AsyncClient) -> None:
    answer = await ask(client, max_tokens=0, echo=True)
    assert answer["choices"][0]["text"] == "hi"
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 0)
    assert (await ask(client, prompt="x" * 128, max_tokens=0))["choices"][0]["text"] == ""


async def test_the_prompts_log_probabilities_are_those_of_generating_it(client: httpx.AsyncClient) -> None:
    generated = (await ask(client, logprobs=1))["choices"][0]
    text = "hi" + generated["text"]
    read = (await ask(client, prompt=text, logprobs=1, max_tokens=0, echo=True))["choices"][0]
    assert read["text"] == text
    assert read["logprobs"]["tokens"] == ["h", "i", *generated["logprobs"]["tokens"]]
    assert (read["logprobs"]["token_logprobs"][0], read["logprobs"]["top_logprobs"][0]) == (None, None)
    pairs = zip(read["logprobs"]["token_logprobs"][2:], generated["logprobs"]["token_logprobs"], strict=True)
    assert all(math.isclose(one, other, abs_tol=1e-4) for one, other in pairs)


async def test_offsets_cut_the_text_into_its_tokens(client: httpx.AsyncClient) -> None:
    choice = (await ask(client, echo=True, logprobs=2, max_tokens=6))["choices"][0]
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    for token, start, stop in zip(tokens, offsets, [*offsets[1:], len(choice["text"])], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][start:stop] == token


async def test_a_part_of_a_character_is_written_as_its_bytes(client: httpx.AsyncClient) -> None:
    choice = (await ask(client, prompt="hé", echo=True, logprobs=0, max_tokens=0))["choices"][0]
    assert choice["logprobs"]["tokens"] == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1]


async def test_the_likeliest_tokens_always_include_the_chosen_one(client: httpx.AsyncClient) -> None:
    choice = (await ask(client, logprobs=2, temperature=2, seed=1, max_tokens=20))["choices"][0]["logprobs"]
    for token, logprob, top in zip(choice["tokens"], choice["token_logprobs"], choice["top_logprobs"], strict=True):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3


async def test_log_probabilities_without_tokens_are_empty_lists(client: httpx.AsyncClient) -> None:
    choice = (await ask(client, logprobs=1, max_tokens=0))["choices"][0]
    assert choice["logprobs"] == {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


@pytest.mark.parametrize("echo", [False, True])
async def test_a_stream_says_what_the_plain_answer_says(client: httpx.AsyncClient, echo: bool) -> None:
    fields: dict[str, Any] = {"prompt": ["hé", [65, 66]], "n": 2, "echo": echo, "logprobs": 1, "max_tokens": 7}
    fields |= {"temperature": 1, "seed": 3, "steering": [{"feature": 3, "scale": 8.0}]}
    answer = await ask(client, **fields)
    response = await client.post(COMPLETIONS, json=completion(stream=True, **fields))
    parts = [choice for chunk in events_of(response) for choice in chunk["choices"]]
    for choice in answer["choices"]:
        mine = [part for part in parts if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert [part["finish_reason"] for part in mine if part["finish_reason"]] == [choice["finish_reason"]]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            streamed = [value for part in mine if part["logprobs"] is not None for value in part["logprobs"][key]]
            assert streamed == choice["logprobs"][key]
        assert mine[-1]["steering"]["fingerprint"] == choice["steering"]["fingerprint"]


async def test_usage_in_a_stream_follows_the_same_rules_as_in_chat(client: httpx.AsyncClient) -> None:
    response = await client.post(COMPLETIONS, json=completion(stream=True, stream_options={"include_usage": True}))
    *chunks, last = events_of(response)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)

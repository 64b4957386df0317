"""`/v1/chat/completions`: answers, streams, choices, log-probabilities and receipts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tests.server.asking import CHAT, chat, events_of

if TYPE_CHECKING:
    import httpx

    from steerserve.runtime import Runtime

STEERING = [{"feature": 3, "scale": 8.0}]


async def ask(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    response = await client.post(CHAT, json=chat(**fields))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def stream(client: httpx.AsyncClient, **fields: object) -> list[dict[str, Any]]:
    response = await client.post(CHAT, json=chat(stream=True, **fields))
    assert response.status_code == 200, response.text
    return events_of(response)


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def test_an_answer_has_openais_shape(client: httpx.AsyncClient) -> None:
    answer = await ask(client)
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")
    (choice,) = answer["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"].keys() == {"role", "content", "refusal"}
    assert (choice["message"]["role"], choice["finish_reason"], choice["logprobs"]) == ("assistant", "length", None)
    usage = answer["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4


async def test_a_stream_says_what_the_plain_answer_says(client: httpx.AsyncClient) -> None:
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 1, "seed": 5, "steering": STEERING}
    answer = await ask(client, **fields)
    chunks = await stream(client, **fields)
    assert text_of(chunks) == answer["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == answer["choices"][0]["finish_reason"]
    edits, streamed = answer["steering"]["edits"], chunks[-1]["steering"]["edits"]
    assert (edits[0]["sha256"], edits[0]["feature"]) == (streamed[0]["sha256"], 3)
    assert answer["steering"]["fingerprint"] == chunks[-1]["steering"]["fingerprint"]


async def test_all_chunks_have_one_id_one_time_and_one_model(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, n=2, stream_options={"include_usage": True})
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1


async def test_the_role_comes_once_for_each_choice_and_before_everything_else(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, n=3)
    firsts = [chunk["choices"][0] for chunk in chunks[:3]]
    assert [(choice["index"], choice["delta"]) for choice in firsts] == [
        (index, {"role": "assistant", "content": ""}) for index in range(3)
    ]
    assert not any("role" in choice["delta"] for chunk in chunks[3:] for choice in chunk["choices"])


async def test_each_choice_ends_once_with_an_empty_delta(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, n=3)
    ends = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"] is not None]
    assert sorted(choice["index"] for choice in ends) == [0, 1, 2]
    assert all(choice["delta"] == {} for choice in ends)


async def test_usage_is_in_no_chunk_unless_asked_for(client: httpx.AsyncClient) -> None:
    assert not any("usage" in chunk for chunk in await stream(client))
    assert not any("usage" in chunk for chunk in await stream(client, stream_options={"include_usage": False}))


async def test_usage_is_null_but_in_a_last_chunk_without_choices(client: httpx.AsyncClient) -> None:
    *chunks, last = await stream(client, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


async def test_continuous_usage_counts_up(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk["usage"]["completion_tokens"] for chunk in await stream(client, stream_options=options)]
    assert counts == sorted(counts)
    assert counts[-1] == 4


async def test_logprobs_hold_each_token_with_its_bytes_and_the_likeliest(client: httpx.AsyncClient) -> None:
    answer = await ask(client, logprobs=True, top_logprobs=2)
    choice = answer["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 4
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == choice["message"]["content"]
    for entry in entries:
        assert entry["token"] == entry["top_logprobs"][0]["token"]  # greedy
        assert math.isclose(entry["logprob"], entry["top_logprobs"][0]["logprob"])
        assert len(entry["top_logprobs"]) == 2
    chunks = await stream(client, logprobs=True, top_logprobs=2)
    streamed = [part["logprobs"] for chunk in chunks for part in chunk["choices"] if part["logprobs"] is not None]
    assert [entry for part in streamed for entry in part["content"]] == entries


async def test_choices_of_one_request_differ_and_a_seed_repeats_them(client: httpx.AsyncClient) -> None:
    fields = {"n": 6, "temperature": 1.5, "seed": -3, "max_tokens": 8}
    first, second = await ask(client, **fields), await ask(client, **fields)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    assert len(set(texts)) > 1
    assert [choice["index"] for choice in first["choices"]] == list(range(6))
    assert first["usage"]["completion_tokens"] <= 48
    assert first["usage"]["prompt_tokens"] == (await ask(client))["usage"]["prompt_tokens"]


async def test_without_a_seed_two_requests_differ(client: httpx.AsyncClient) -> None:
    answers = [await ask(client, temperature=2, max_tokens=20) for _ in range(2)]
    assert answers[0]["choices"] != answers[1]["choices"]


async def test_a_stream_of_several_choices_keeps_them_apart(client: httpx.AsyncClient) -> None:
    fields: dict[str, Any] = {"n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 10}
    answer = await ask(client, **fields)
    chunks = await stream(client, **fields)
    for choice in answer["choices"]:
        assert text_of(chunks, choice["index"]) == choice["message"]["content"]


async def test_a_stop_string_ends_the_text_before_it(client: httpx.AsyncClient) -> None:
    whole = (await ask(client, max_tokens=12))["choices"][0]["message"]["content"]
    stop = whole[5:7]
    choice = (await ask(client, max_tokens=12, stop=stop))["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    kept = await ask(client, max_tokens=12, stop=[stop], include_stop_str_in_output=True)
    assert kept["choices"][0]["message"]["content"] == whole[: whole.index(stop)] + stop


async def test_the_receipt_is_there_with_steering_alone(client: httpx.AsyncClient) -> None:
    assert "steering" not in await ask(client)
    answer = await ask(client, steering=STEERING)
    assert answer["steering"]["edits"][0]["raw_scale"] == 8.0
    assert "steering" not in answer["choices"][0]
    chunks = await stream(client, steering=STEERING)
    assert ["steering" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_each_of_several_choices_has_its_own_receipt(client: httpx.AsyncClient) -> None:
    answer = await ask(client, steering=STEERING, n=2)
    assert answer["steering"] == answer["choices"][0]["steering"]
    chunks = await stream(client, steering=STEERING, n=2)
    ends = [chunk for chunk in chunks if chunk["choices"][0]["finish_reason"] is not None]
    assert [chunk["steering"] == chunk["choices"][0]["steering"] for chunk in ends] == [True, True]


async def test_zero_strength_is_the_unsteered_answer(client: httpx.AsyncClient) -> None:
    plain = await ask(client, logprobs=True)
    still = await ask(client, logprobs=True, steering={"edits": STEERING, "strength": 0})
    assert plain["choices"] == still["choices"]


async def test_a_temperature_next_to_zero_is_greedy(client: httpx.AsyncClient) -> None:
    assert (await ask(client, temperature=1e-300))["choices"] == (await ask(client))["choices"]


async def test_the_older_token_limit_gives_way_to_the_newer(client: httpx.AsyncClient) -> None:
    assert (await ask(client, max_tokens=9, max_completion_tokens=2))["usage"]["completion_tokens"] == 2


async def test_without_a_limit_the_rest_of_the_context_may_be_used(client: httpx.AsyncClient, runtime: Runtime) -> None:
    usage = (await ask(client, max_tokens=None, ignore_eos=True))["usage"]
    assert usage["total_tokens"] == runtime.context_length


async def test_parts_of_text_are_joined_and_roles_are_read(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    joined = await ask(client, messages=[{"role": "developer", "content": "x"}, {"role": "user", "content": parts}])
    plain = await ask(client, messages=[{"role": "system", "content": "x"}, {"role": "user", "content": "a\nb"}])
    assert joined["choices"] == plain["choices"]
    refused = [{"role": "assistant", "refusal": "no"}, {"role": "assistant", "content": None, "refusal": "no"}]
    assert (await ask(client, messages=refused))["usage"]["prompt_tokens"] > 0


async def test_metadata_and_service_tier_come_back(client: httpx.AsyncClient) -> None:
    answer = await ask(client, metadata={"run": "5"}, service_tier="auto")
    assert (answer["metadata"], answer["service_tier"]) == ({"run": "5"}, "default")


async def test_more_choices_than_slots_wait_their_turn(client: httpx.AsyncClient, runtime: Runtime) -> None:
    answer = await ask(client, n=3 * runtime.settings.engine.slots)
    assert len(answer["choices"]) == 3 * runtime.settings.engine.slots

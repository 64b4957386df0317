"""OpenAI's own client, unchanged, over a real socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import openai
import pytest

from tests.live.conftest import KEY
from tests.tiny import IM_END_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from openai.types.chat import ChatCompletionMessageParam

    from tests.live.conftest import LiveServer

pytestmark = pytest.mark.slow

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
END_SOON = {str(IM_END_ID): 100}
"""Makes the end of the answer all but certain; the helper refuses answers that their token limit ended."""
STEERING = {"steering": [{"feature": 3, "scale": 8.0}]}


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url, api_key=KEY, max_retries=0) as opened:
        yield opened


@pytest.fixture
async def async_client(live: LiveServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=live.url, api_key=KEY, max_retries=0) as opened:
        yield opened


def test_it_reads_an_answer_with_its_receipt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=6, temperature=0, extra_body=STEERING
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.model_extra is not None
    assert answer.model_extra["steering"]["edits"][0]["feature"] == 3


def test_it_reads_a_stream_that_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, seed=1)
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=20,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


def test_its_stream_helper_puts_a_completion_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny",
        messages=MESSAGES,
        n=2,
        seed=2,
        logprobs=True,
        top_logprobs=1,
        logit_bias=END_SOON,
        extra_body=STEERING | {"min_tokens": 8},
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert [choice.message.role for choice in final.choices] == ["assistant", "assistant"]
    for choice in final.choices:
        assert choice.finish_reason == "stop"
        assert choice.logprobs is not None
        assert len(choice.logprobs.content or []) == 8


async def test_it_works_without_blocking_too(async_client: openai.AsyncOpenAI) -> None:
    whole = await async_client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=9, temperature=0)
    stream = await async_client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=9, temperature=0, stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


async def test_its_stream_helper_works_without_blocking_too(async_client: openai.AsyncOpenAI) -> None:
    async with async_client.chat.completions.stream(model="tiny", messages=MESSAGES, logit_bias=END_SOON) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"


def test_it_reads_text_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=5, echo=True, logprobs=2, seed=1)
    assert [choice.text[0] for choice in whole.choices] == ["a", "b"]
    assert whole.choices[0].logprobs is not None
    stream = client.completions.create(
        model="tiny", prompt=["a", "b"], max_tokens=5, echo=True, logprobs=2, seed=1, stream=True
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {choice.index: choice.text for choice in whole.choices}


def test_it_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


@pytest.mark.parametrize("stream", [False, True])
def test_it_raises_the_class_that_fits(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            stream=stream,
            extra_body={"steering": [{"feature": 9999, "scale": 1}]},
        )
    assert (bad.value.code, bad.value.param) == ("invalid_value", "steering.edits[0].feature")
    assert "0 to 95" in str(bad.value)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt", messages=MESSAGES, stream=stream)
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        client.with_options(api_key="wrong").chat.completions.create(model="tiny", messages=MESSAGES, stream=stream)


def test_its_request_id_is_the_one_it_sent(client: openai.OpenAI) -> None:
    headers = {"x-request-id": "mine"}
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1, extra_headers=headers)
    assert answer._request_id == "mine"


async def test_many_at_once_get_what_each_gets_alone(async_client: openai.AsyncOpenAI) -> None:
    async def ask(number: int) -> str | None:
        extra = {"steering": [{"feature": number, "scale": 2.0 * number}]}
        answer = await async_client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=16, temperature=1, seed=number, extra_body=extra
        )
        return answer.choices[0].message.content

    alone = [await ask(number) for number in range(8)]
    assert await asyncio.gather(*(ask(number) for number in range(8))) == alone

"""From plain values and from bodies to the same requests of the engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import ContextLengthError
from steerserve.requests.generation import prepare_chat, prepare_completion, prepare_text
from steerserve.wire.chat import ChatCompletionRequest
from steerserve.wire.completions import CompletionRequest

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

TEXT = "Tell me about bridges."


def test_a_text_is_prepared_as_the_same_body_is(llama: Runtime) -> None:
    request = asyncio.run(prepare_text(llama, TEXT, max_tokens=5, seed=3))
    if llama.tokenizer.has_chat_template:
        chat = {"model": "llama", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 5, "seed": 3}
        prepared = asyncio.run(prepare_chat(llama, ChatCompletionRequest.model_validate(chat)))
    else:
        body = {"model": "llama", "prompt": TEXT, "max_tokens": 5, "seed": 3}
        prepared = asyncio.run(prepare_completion(llama, CompletionRequest.model_validate(body)))
    [expected] = prepared.requests
    assert (request.prompt_ids, request.sampling, request.steering) == (
        expected.prompt_ids,
        expected.sampling,
        expected.steering,
    )


def test_a_text_without_a_limit_may_fill_the_context(llama: Runtime) -> None:
    request = asyncio.run(prepare_text(llama, TEXT))
    assert request.sampling.max_tokens == llama.context_length - len(request.prompt_ids)


def test_a_text_that_does_not_fit_is_refused(llama: Runtime) -> None:
    with pytest.raises(ContextLengthError, match="maximum context length is"):
        asyncio.run(prepare_text(llama, TEXT, max_tokens=llama.context_length))

"""From a checked body to what the engine runs: token ids, sampling parameters and edits, or a refusal."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.core.errors import ContextLengthError, InvalidRequestError, UnavailableError
from steerserve.engine.request import GenerationRequest
from steerserve.server.sampling import sampling_params

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.runtime import Runtime
    from steerserve.server.schemas.chat import ChatCompletionRequest
    from steerserve.server.schemas.completions import CompletionRequest, Prompt
    from steerserve.server.schemas.sampling import GenerationFields
    from steerserve.steering.resolve import ResolvedSteering

_LARGE_PROMPT_CHARS = 16_384
"""Longer prompts are tokenised in a thread, so that nobody else's stream stalls."""
_MESSAGE_CHARS = 64
"""What a message costs the template beside its text, in characters."""
_MIN_CHOICE_LIMIT = 128
"""The specification's largest `n`, which is possible on the smallest server."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that was checked in full: what to run, and what all its chunks say alike."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    requests: tuple[GenerationRequest, ...]
    """In order of choice: n for the first prompt, n for the second."""
    num_samples: int
    """Choices for each prompt."""
    num_prompt_tokens: int
    num_edits: int


async def prepare_chat(runtime: Runtime, body: ChatCompletionRequest) -> Prepared:
    """Check a chat request against the model and render its conversation.

    Raises:
        SteerserveError: it cannot be served.
    """
    steering = await _check(runtime, body)
    messages = [message.as_template_input() for message in body.messages]

    def render() -> list[int]:
        return runtime.tokenizer.render_chat(messages, add_generation_prompt=body.add_generation_prompt)

    num_chars = sum(_MESSAGE_CHARS + len(message["content"]) for message in messages)
    is_large = num_chars > _LARGE_PROMPT_CHARS
    ids = tuple(await asyncio.to_thread(render) if is_large else render())
    max_tokens = _check_context(runtime, len(ids), body.token_limit, param="messages")
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _prepared("chatcmpl-", runtime, body, steering, [ids], [max_tokens], num_logprobs=num_logprobs)


async def prepare_completion(runtime: Runtime, body: CompletionRequest) -> Prepared:
    """Check a completion request against the model and tokenise its prompts.

    Raises:
        SteerserveError: it cannot be served.
    """
    steering = await _check(runtime, body)
    limit = max(_MIN_CHOICE_LIMIT, runtime.settings.engine.slots + runtime.settings.engine.queue)
    if len(body.prompt) * body.n > limit:
        message = (
            f"The request asks for {len(body.prompt) * body.n} choices ({len(body.prompt)} prompts, n={body.n}), and "
            f"this server takes at most {limit} in one request. Split the prompts over several."
        )
        raise InvalidRequestError(message, param="prompt")
    is_large = sum(len(prompt) for prompt in body.prompt if isinstance(prompt, str)) > _LARGE_PROMPT_CHARS
    prompts = await asyncio.to_thread(_encode, runtime, body.prompt) if is_large else _encode(runtime, body.prompt)
    max_tokens = [_check_context(runtime, len(ids), body.max_tokens, param="prompt") for ids in prompts]
    return _prepared(
        "cmpl-",
        runtime,
        body,
        steering,
        prompts,
        max_tokens,
        num_logprobs=body.logprobs,
        num_prompt_logprobs=body.logprobs if body.echo else None,
    )


def check_served(runtime: Runtime, model: str | None) -> None:
    """Check that requests are taken now, and that `model` is the one that is served; None is any.

    Raises:
        UnavailableError: the server is loading or stopping.
        ModelNotFoundError: it serves another model.
    """
    if runtime.state != "ready":
        raise UnavailableError(f"The server is {runtime.state}. Try again in a moment.")
    if model is not None:
        runtime.check_model(model)


async def _check(runtime: Runtime, body: GenerationFields) -> ResolvedSteering | None:
    check_served(runtime, body.model)
    return await runtime.resolve_steering_async(body.steering)


def _encode(runtime: Runtime, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    return [_encode_one(runtime, prompt, place, len(prompts)) for place, prompt in enumerate(prompts)]


def _encode_one(runtime: Runtime, prompt: Prompt, place: int, num_prompts: int) -> tuple[int, ...]:
    # A single prompt may have been sent bare or in a list of one; clients that name a place sent several.
    param = "prompt" if num_prompts == 1 else f"prompt[{place}]"
    if isinstance(prompt, str):
        ids = tuple(runtime.tokenizer.encode(prompt))
    else:
        ids, vocab_size = prompt, runtime.tokenizer.vocab_size
        wrong = next((token_id for token_id in ids if not 0 <= token_id < vocab_size), None)
        if wrong is not None:
            message = f"Invalid value for '{param}': token ids are 0 to {vocab_size - 1}, but one is {str(wrong)[:40]}."
            raise InvalidRequestError(message, param=param)
    if not ids:
        message = f"Invalid value for '{param}': a prompt must have at least one token. Send some text or a BOS token."
        raise InvalidRequestError(message, param=param)
    return ids


def _check_context(runtime: Runtime, num_prompt: int, wanted: int | None, *, param: str) -> int:
    """Return how many tokens may be generated; the words are those by which LangChain and LiteLLM know the case."""
    context = runtime.context_length
    if num_prompt > context or (num_prompt == context and wanted != 0):
        message = (
            f"This model's maximum context length is {context} tokens. However, your prompt is too long: it has "
            f"{num_prompt} tokens. Please reduce the length of the {param}."
        )
        raise ContextLengthError(message, param=param)
    if wanted is not None and num_prompt + wanted > context:
        message = (
            f"This model's maximum context length is {context} tokens. However, you requested {num_prompt + wanted} "
            f"tokens ({num_prompt} in the {param}, {wanted} in the completion). Please reduce the length of the "
            f"{param} or completion."
        )
        raise ContextLengthError(message, param=param)
    return context - num_prompt if wanted is None else wanted


def _prepared(
    prefix: str,
    runtime: Runtime,
    body: GenerationFields,
    steering: ResolvedSteering | None,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: Sequence[int],
    *,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None = None,
) -> Prepared:
    request_id = f"{prefix}{uuid.uuid4().hex}"
    requests = []
    for ids, limit in zip(prompts, max_tokens, strict=True):
        sampling = sampling_params(
            body,
            defaults=runtime.settings.sampling,
            vocab_size=runtime.tokenizer.vocab_size,
            max_tokens=limit,
            # Drawn for each prompt, or equal prompts in one request would get equal texts.
            seed=body.seed if body.seed is not None else secrets.randbits(63),
            num_logprobs=num_logprobs,
            num_prompt_logprobs=num_prompt_logprobs,
        )
        requests += [GenerationRequest(request_id, ids, sampling, steering, sample) for sample in range(body.n)]
    return Prepared(
        id=request_id,
        created=int(time.time()),
        model=runtime.model_id,
        system_fingerprint=runtime.system_fingerprint(steering),
        requests=tuple(requests),
        num_samples=body.n,
        num_prompt_tokens=sum(len(ids) for ids in prompts),
        num_edits=len(steering.edits) if steering is not None else 0,
    )

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
from steerserve.presets.naming import presets_in
from steerserve.presets.preset import NO_DEFAULTS
from steerserve.requests.sampling import sampling_params
from steerserve.requests.watching import check_size, resolve_watch, watched_limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.engine.request import Watch
    from steerserve.presets.preset import PresetDefaults
    from steerserve.requests.served import ServedModel
    from steerserve.steering.resolved import ResolvedSteering
    from steerserve.wire.chat import ChatCompletionRequest
    from steerserve.wire.completions import CompletionRequest, Prompt
    from steerserve.wire.generation import GenerationFields

_LARGE_PROMPT_CHARS = 16_384
"""Longer prompts are tokenised in a thread, so that nobody else's stream stalls."""
_MESSAGE_CHARS = 64
"""What a message costs the template beside its text, in characters."""
_MIN_CHOICE_LIMIT = 128
"""The specification's largest `n`, which is possible on the smallest server."""


_SYSTEM_ROLES = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for beside its prompt."""

    steering: ResolvedSteering | None
    defaults: PresetDefaults = NO_DEFAULTS

    @property
    def max_tokens(self) -> int | None:
        """What its presets say."""
        return self.defaults.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that was checked in full: what to run, and what all its chunks say alike."""

    id: str
    created: int
    model: str
    """As the client wrote it: the model's id, with the presets that it named there."""
    system_fingerprint: str
    requests: tuple[GenerationRequest, ...]
    """In order of choice: n for the first prompt, n for the second."""
    num_samples: int
    """Choices for each prompt."""
    num_prompt_tokens: int
    num_edits: int
    watch: Watch | None


async def prepare_chat(served: ServedModel, body: ChatCompletionRequest) -> Prepared:
    """Check a chat request against the model and render its conversation.

    Raises:
        SteerserveError: it cannot be served.
    """
    asked = await asked_for(served, body.model, body.steering)
    messages = [message.as_template_input() for message in body.messages]
    ids = await chat_prompt(served, messages, asked, add_generation_prompt=body.add_generation_prompt)
    max_tokens = check_context(served, len(ids), body.token_limit, asked.max_tokens, param="messages")
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _prepared(
        "chatcmpl-",
        served,
        body,
        asked,
        [(ids, max_tokens)],
        can_cut=body.token_limit is None,
        num_logprobs=num_logprobs,
    )


async def prepare_completion(served: ServedModel, body: CompletionRequest) -> Prepared:
    """Check a completion request against the model and tokenise its prompts.

    Raises:
        SteerserveError: it cannot be served.
    """
    asked = await asked_for(served, body.model, body.steering)
    limit = choice_limit(served)
    if len(body.prompt) * body.n > limit:
        message = (
            f"The request asks for {len(body.prompt) * body.n} choices ({len(body.prompt)} prompts, n={body.n}), and "
            f"this server takes at most {limit} in one request. Split the prompts over several."
        )
        raise InvalidRequestError(message, param="prompt")
    is_large = sum(len(prompt) for prompt in body.prompt if isinstance(prompt, str)) > _LARGE_PROMPT_CHARS
    prompts = await asyncio.to_thread(_encode, served, body.prompt) if is_large else _encode(served, body.prompt)
    wanted = body.max_tokens if "max_tokens" in body.model_fields_set or asked.max_tokens is None else None
    sized = [(ids, check_context(served, len(ids), wanted, asked.max_tokens, param="prompt")) for ids in prompts]
    return _prepared(
        "cmpl-",
        served,
        body,
        asked,
        sized,
        can_cut=wanted is None,
        num_logprobs=body.logprobs,
        num_prompt_logprobs=body.logprobs if body.echo else None,
    )


def check_served(served: ServedModel, model: str | None) -> None:
    """Check that requests are taken now, and that `model` is the one that is served; None is any.

    For what reads with the model and does not generate.

    Raises:
        UnavailableError: the server is loading or stopping.
        ModelNotFoundError: it serves another model.
        InvalidRequestError: it names a preset, which does nothing there.
    """
    _check_ready(served)
    check_plain_model(served, model)


def check_plain_model(served: ServedModel, model: str | None) -> None:
    """Check that `model` is the one that is served, without presets; None is any.

    Raises:
        ModelNotFoundError: it is another model.
        InvalidRequestError: it names a preset, which changes only what is generated.
    """
    if model is not None and served.check_model(model):
        message = f"{model!r} names a preset, which changes only what is generated. Send 'model': {served.model_id!r}."
        raise InvalidRequestError(message, param="model")


def _check_ready(served: ServedModel) -> None:
    if served.state != "ready":
        raise UnavailableError(f"The server is {served.state}. Try again in a moment.")


async def asked_for(served: ServedModel, model: str, value: object) -> Asked:
    """Check what a model's name and the JSON value of `steering` ask for, presets in both of them included.

    Raises:
        SteerserveError: it cannot be served.
    """
    _check_ready(served)
    named = presets_in(value)
    if model == served.model_id and not named:
        return Asked(await served.resolve_steering_async(value))
    presets = await asyncio.to_thread(served.presets.snapshot)
    model_presets = served.check_model(model, presets)
    steering = await served.resolve_steering_async(value, model_presets, presets)
    return Asked(steering, presets.defaults([*model_presets, *named]))


async def chat_prompt(
    served: ServedModel, messages: Sequence[Mapping[str, str]], asked: Asked, *, add_generation_prompt: bool
) -> tuple[int, ...]:
    """Return the tokens of a conversation, with the presets' system prompt where it has none of its own.

    Raises:
        InvalidRequestError: the model's template refuses it.
    """
    spoken = list(messages)
    if asked.defaults.system is not None and not any(message["role"] in _SYSTEM_ROLES for message in messages):
        spoken.insert(0, {"role": "system", "content": asked.defaults.system})

    def render() -> list[int]:
        return served.tokenizer.render_chat(spoken, add_generation_prompt=add_generation_prompt)

    num_chars = sum(_MESSAGE_CHARS + len(message["content"]) for message in spoken)
    is_large = num_chars > _LARGE_PROMPT_CHARS
    return tuple(await asyncio.to_thread(render) if is_large else render())


def choice_limit(served: ServedModel) -> int:
    """Return how many samples one request may ask for."""
    return max(_MIN_CHOICE_LIMIT, served.settings.engine.slots + served.settings.engine.queue)


def _encode(served: ServedModel, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    return [_encode_one(served, prompt, place, len(prompts)) for place, prompt in enumerate(prompts)]


def _encode_one(served: ServedModel, prompt: Prompt, place: int, num_prompts: int) -> tuple[int, ...]:
    # A single prompt may have been sent bare or in a list of one; clients that name a place sent several.
    param = "prompt" if num_prompts == 1 else f"prompt[{place}]"
    if isinstance(prompt, str):
        ids = tuple(served.tokenizer.encode(prompt))
    else:
        ids, vocab_size = prompt, served.tokenizer.vocab_size
        wrong = next((token_id for token_id in ids if not 0 <= token_id < vocab_size), None)
        if wrong is not None:
            message = f"Invalid value for '{param}': token ids are 0 to {vocab_size - 1}, but one is {str(wrong)[:40]}."
            raise InvalidRequestError(message, param=param)
    if not ids:
        message = f"Invalid value for '{param}': a prompt must have at least one token. Send some text or a BOS token."
        raise InvalidRequestError(message, param=param)
    return ids


def check_context(served: ServedModel, num_prompt: int, wanted: int | None, default: int | None, *, param: str) -> int:
    """Return how many tokens may be generated; the words are those by which LangChain and LiteLLM know the case.

    What a preset says (`default`) is cut to what fits, as the client has not asked for it.

    Raises:
        ContextLengthError: the prompt does not fit, or not with so many.
    """
    context = served.context_length
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
    room = context - num_prompt
    if wanted is not None:
        return wanted
    return room if default is None else min(default, room)


def _prepared(
    prefix: str,
    served: ServedModel,
    body: GenerationFields,
    asked: Asked,
    prompts: Sequence[tuple[tuple[int, ...], int]],
    *,
    can_cut: bool,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None = None,
) -> Prepared:
    """Put together a request of `prompts`, each with how many tokens its context has room for."""
    request_id = f"{prefix}{uuid.uuid4().hex}"
    steering, preset = asked.steering, asked.defaults.sampling
    seed = body.seed if body.seed is not None else preset.seed
    watch = resolve_watch(served, body.features)
    num_prompt_tokens = sum(len(ids) for ids, _ in prompts)
    check_size(watch, body.n * num_prompt_tokens)
    most = [limit for _, limit in prompts for _ in range(body.n)]
    num_edits = len(steering.edits) if steering is not None else 0
    limits = watched_limits(watch, body.n * num_prompt_tokens, most, num_edits=num_edits, can_cut=can_cut)[:: body.n]
    requests = []
    for (ids, _), limit in zip(prompts, limits, strict=True):
        sampling = sampling_params(
            body,
            defaults=served.settings.sampling,
            preset=preset,
            vocab_size=served.tokenizer.vocab_size,
            max_tokens=limit,
            # Drawn for each prompt, or equal prompts in one request would get equal texts.
            seed=seed if seed is not None else secrets.randbits(63),
            num_logprobs=num_logprobs,
            num_prompt_logprobs=num_prompt_logprobs,
        )
        requests += [GenerationRequest(request_id, ids, sampling, steering, sample, watch) for sample in range(body.n)]
    return Prepared(
        id=request_id,
        created=int(time.time()),
        model=body.model,
        system_fingerprint=served.system_fingerprint(steering),
        requests=tuple(requests),
        num_samples=body.n,
        num_prompt_tokens=num_prompt_tokens,
        num_edits=num_edits,
        watch=watch,
    )

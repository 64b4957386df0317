"""From a checked request body to the requests that the engine runs: token ids, sampling parameters and edits."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError
from steerserve.engine.request import GenerationRequest
from steerserve.presets.naming import model_with
from steerserve.presets.preset import NO_DEFAULTS
from steerserve.requests.prompts import check_context, encode_prompts, render_chat
from steerserve.requests.sampling import sampling_params
from steerserve.requests.watching import resolve_watch, watched_limits
from steerserve.wire.generation import GenerationFields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.engine.request import Watch
    from steerserve.presets.library import PresetSnapshot
    from steerserve.presets.preset import PresetDefaults
    from steerserve.requests.served import ServedModel
    from steerserve.steering.resolved import ResolvedSteering
    from steerserve.wire.chat import ChatCompletionRequest
    from steerserve.wire.completions import CompletionRequest

_MIN_CHOICE_LIMIT = 128
"""The largest `n` of the API, which even the smallest server accepts."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The steering of a generation, and the defaults of its presets."""

    steering: ResolvedSteering | None
    defaults: PresetDefaults = NO_DEFAULTS

    @property
    def max_tokens(self) -> int | None:
        """Limit of generated tokens that the presets set."""
        return self.defaults.sampling.max_tokens

    @property
    def num_edits(self) -> int:
        """Number of edits."""
        return len(self.steering.edits) if self.steering is not None else 0


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt that was checked, and how it is continued."""

    ids: tuple[int, ...]
    max_tokens: int
    """Largest number of tokens that the context has room for."""
    seed: int
    behaviour: Behaviour


@dataclass(frozen=True, slots=True)
class PreparedGeneration:
    """A request that was checked completely: what the engine runs, and what the answer says in all its parts."""

    id: str
    created: int
    model: str
    """The model as the client named it: its id, with the presets that are part of the name."""
    system_fingerprint: str
    requests: tuple[GenerationRequest, ...]
    """The engine's requests, in order of choice: n for the first prompt, then n for the second."""
    num_samples: int
    """Number of choices for each prompt."""
    num_prompt_tokens: int
    num_edits: int
    watch: Watch | None


async def prepare_chat(served: ServedModel, body: ChatCompletionRequest) -> PreparedGeneration:
    """Check a chat request against the model and render its conversation.

    Raises:
        SteerserveError: the request cannot be honoured.
    """
    behaviour = await resolve_behaviour(served, body.model, body.steering)
    messages = [message.as_template_input() for message in body.messages]
    ids = await render_chat(
        served, messages, behaviour.defaults.system, add_generation_prompt=body.add_generation_prompt
    )
    max_tokens = check_context(served, len(ids), body.token_limit, behaviour.max_tokens, param="messages")
    return _prepare(
        f"chatcmpl-{uuid.uuid4().hex}",
        served,
        body,
        [PreparedPrompt(ids, max_tokens, _seed(body.seed, behaviour), behaviour)],
        can_cut=body.token_limit is None,
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


async def prepare_completion(served: ServedModel, body: CompletionRequest) -> PreparedGeneration:
    """Check a completion request against the model and tokenise its prompts.

    Raises:
        SteerserveError: the request cannot be honoured.
    """
    behaviour = await resolve_behaviour(served, body.model, body.steering)
    limit = choice_limit(served)
    if len(body.prompt) * body.n > limit:
        message = (
            f"The request asks for {len(body.prompt) * body.n} choices ({len(body.prompt)} prompts, n={body.n}), and "
            f"this server takes at most {limit} in one request. Split the prompts over several."
        )
        raise InvalidRequestError(message, param="prompt")
    uses_default = "max_tokens" not in body.model_fields_set and behaviour.max_tokens is not None
    requested = None if uses_default else body.max_tokens
    prompts = []
    for ids in await encode_prompts(served, body.prompt):
        max_tokens = check_context(served, len(ids), requested, behaviour.max_tokens, param="prompt")
        # A seed is drawn for each prompt, or equal prompts of one request would get equal texts.
        prompts.append(PreparedPrompt(ids, max_tokens, _seed(body.seed, behaviour), behaviour))
    return _prepare(
        f"cmpl-{uuid.uuid4().hex}",
        served,
        body,
        prompts,
        can_cut=uses_default,
        num_logprobs=body.logprobs,
        num_prompt_logprobs=body.logprobs if body.echo else None,
    )


async def prepare_text(
    served: ServedModel,
    text: str,
    *,
    presets: Sequence[str] = (),
    max_tokens: int | None = None,
    seed: int | None = None,
) -> GenerationRequest:
    """Return the engine's request to answer or continue one text.

    The text is a user's message if the model has a chat template, and a raw prompt otherwise.

    Args:
        served: The model.
        text: The text.
        presets: Names of presets to apply.
        max_tokens: Largest number of generated tokens; by default what the presets or the context allow.
        seed: Seed of the sampling noise; by default that of the presets, or a random one.

    Raises:
        SteerserveError: the text does not fit, or a preset cannot be used.
    """
    model = model_with(served.model_id, presets) if presets else served.model_id
    behaviour = await resolve_behaviour(served, model, None)
    if served.tokenizer.has_chat_template:
        messages = [{"role": "user", "content": text}]
        ids = await render_chat(served, messages, behaviour.defaults.system, add_generation_prompt=True)
    else:
        [ids] = await encode_prompts(served, (text,))
    limit = check_context(served, len(ids), max_tokens, behaviour.max_tokens, param="prompt")
    fields = GenerationFields.model_validate({"model": model})
    prompt = PreparedPrompt(ids, limit, _seed(seed, behaviour), behaviour)
    _, [request] = engine_requests(f"text-{uuid.uuid4().hex}", served, fields, [prompt], can_cut=max_tokens is None)
    return request


async def resolve_behaviour(served: ServedModel, model: str, steering: object) -> Behaviour:
    """Resolve a model's name and the JSON value of `steering`, with the presets in both of them.

    Raises:
        SteerserveError: the request cannot be honoured.
    """
    served.check_ready()
    presets: PresetSnapshot | None = None
    model_presets: tuple[str, ...] = ()
    if model != served.model_id:
        presets = await asyncio.to_thread(served.presets.snapshot)
        model_presets = served.check_model(model, presets)
    parsed = served.parse_steering(steering)
    if parsed.presets and presets is None:
        presets = await asyncio.to_thread(served.presets.snapshot)
    resolved = await served.resolve_steering_async(parsed, model_presets, presets)
    if presets is None:
        return Behaviour(resolved)
    return Behaviour(resolved, presets.defaults([*model_presets, *parsed.presets]))


def choice_limit(served: ServedModel) -> int:
    """Return the largest number of samples in one request."""
    return max(_MIN_CHOICE_LIMIT, served.settings.engine.slots + served.settings.engine.queue)


def engine_requests(
    request_id: str,
    served: ServedModel,
    body: GenerationFields,
    prompts: Sequence[PreparedPrompt],
    *,
    can_cut: bool,
    num_logprobs: int | None = None,
    num_prompt_logprobs: int | None = None,
) -> tuple[Watch | None, tuple[GenerationRequest, ...]]:
    """Return what the samples watch, and the engine's requests: n for the first prompt, then n for the second.

    Args:
        request_id: Id of all of them.
        served: The model.
        body: The sampling parameters, n and the watched features.
        prompts: The prompts.
        can_cut: Whether the samples may be shorter than their prompts' `max_tokens`, because the client set no limit.
        num_logprobs: Number of likeliest tokens to report at each generated token; None for no log-probabilities.
        num_prompt_logprobs: The same at each prompt token.

    Raises:
        InvalidRequestError: a parameter is not valid for this model, or the answer would be too large.
    """
    watch = resolve_watch(served, body.features)
    limits = watched_limits(
        watch,
        body.n * sum(len(prompt.ids) for prompt in prompts),
        [prompt.max_tokens for prompt in prompts],
        num_samples=body.n,
        num_edits=max(prompt.behaviour.num_edits for prompt in prompts),
        can_cut=can_cut,
    )
    requests = []
    for prompt, limit in zip(prompts, limits, strict=True):
        sampling = sampling_params(
            body,
            defaults=served.settings.sampling,
            preset=prompt.behaviour.defaults.sampling,
            vocab_size=served.tokenizer.vocab_size,
            max_tokens=limit,
            seed=prompt.seed,
            num_logprobs=num_logprobs,
            num_prompt_logprobs=num_prompt_logprobs,
        )
        steering = prompt.behaviour.steering
        requests += [
            GenerationRequest(request_id, prompt.ids, sampling, steering, sample, watch) for sample in range(body.n)
        ]
    return watch, tuple(requests)


def _prepare(
    request_id: str,
    served: ServedModel,
    body: GenerationFields,
    prompts: Sequence[PreparedPrompt],
    *,
    can_cut: bool,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None = None,
) -> PreparedGeneration:
    watch, requests = engine_requests(
        request_id,
        served,
        body,
        prompts,
        can_cut=can_cut,
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
    )
    behaviour = prompts[0].behaviour
    return PreparedGeneration(
        id=request_id,
        created=int(time.time()),
        model=body.model,
        system_fingerprint=served.system_fingerprint(behaviour.steering),
        requests=requests,
        num_samples=body.n,
        num_prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
        num_edits=behaviour.num_edits,
        watch=watch,
    )


def _seed(requested: int | None, behaviour: Behaviour) -> int:
    """Return the client's seed, or that of the presets, or a random one."""
    seed = requested if requested is not None else behaviour.defaults.sampling.seed
    return seed if seed is not None else secrets.randbits(63)

"""From the body of a comparison to arms that can run: prompts, edits and controls, or a refusal that names the arm."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from steerserve.compare.arms import Arm, EditedFeatures, edited_features
from steerserve.compare.control import NamedArm, control_sources, control_steering, controlled
from steerserve.core.errors import InvalidRequestError, ModelNotFoundError
from steerserve.core.names import short_name
from steerserve.engine.readings import text_ids
from steerserve.engine.request import GenerationRequest
from steerserve.requests.generation import Asked, asked_for, chat_prompt, check_context, check_served, choice_limit
from steerserve.requests.sampling import sampling_params
from steerserve.requests.watching import check_size, resolve_watch, watched_limits
from steerserve.wire.compare import MAX_NAME_CHARS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.engine.request import Watch
    from steerserve.presets.library import PresetSnapshot
    from steerserve.requests.served import ServedModel
    from steerserve.wire.compare import ArmRequest, ComparisonRequest

_SEED_BITS = 53
"""Of a seed that is drawn: every JSON reader holds it exactly."""
_PATH = re.compile(r"\bsteering(?=\.\w| must be | is nested)")


@dataclass(frozen=True, slots=True)
class PreparedComparison:
    """A comparison that was checked in full."""

    id: str
    created: int
    seed: int
    arms: tuple[Arm, ...]
    num_samples: int
    """Of each arm."""
    requests: tuple[GenerationRequest, ...]
    """Those of the first arm, then those of the second."""
    watch: Watch | None
    """What every arm watches."""
    edited: tuple[EditedFeatures, ...]
    empty_ids: tuple[int, ...]
    """The prompt that says nothing, for relevance."""

    @property
    def num_edits(self) -> int:
        """Edits of all arms."""
        return sum(len(arm.steering.edits) for arm in self.arms if arm.steering is not None)


async def prepare_comparison(served: ServedModel, body: ComparisonRequest) -> PreparedComparison:
    """Check a comparison against the model, and render every arm's conversation.

    Raises:
        SteerserveError: it cannot be served; `param` is a path such as `arms[1].steering.edits[0].feature`.
    """
    check_served(served, None)
    await _check_model(served, body)
    named = await _named(served, body)
    sources = control_sources(named)
    limit = choice_limit(served)
    if len(body.arms) * body.n > limit:
        message = (
            f"The comparison asks for {len(body.arms) * body.n} samples ({len(body.arms)} arms, n={body.n}), and this "
            f"server takes at most {limit} in one request. Send fewer arms, or a smaller 'n'."
        )
        raise InvalidRequestError(message, param="n")
    seed = body.seed if body.seed is not None else secrets.randbits(_SEED_BITS)
    asked = await _all_asked(served, body, named, sources, seed)
    prompts = await _prompts(served, body, sources, asked)
    watch = resolve_watch(served, body.features)
    num_prompt_tokens = body.n * sum(map(len, prompts))
    check_size(watch, num_prompt_tokens)
    most = [
        check_context(served, len(prompt_ids), body.token_limit, one.max_tokens, param=_prompt_param(body, place))
        for place, (one, prompt_ids) in enumerate(zip(asked, prompts, strict=True))
    ]
    limits = watched_limits(
        watch,
        num_prompt_tokens,
        [limit for limit in most for _ in range(body.n)],
        num_edits=max(len(one.steering.edits) if one.steering is not None else 0 for one in asked),
        can_cut=body.token_limit is None,
    )[:: body.n]
    comparison_id = f"cmp-{uuid.uuid4().hex}"
    arms, requests = [], []
    for arm, one, prompt_ids, limit in zip(body.arms, asked, prompts, limits, strict=True):
        sampling = sampling_params(
            body,
            defaults=served.settings.sampling,
            preset=one.defaults.sampling,
            vocab_size=served.tokenizer.vocab_size,
            max_tokens=limit,
            seed=seed,
            num_logprobs=None,
            num_prompt_logprobs=None,
        )
        arms.append(Arm(arm.name, prompt_ids, one.steering, arm.control_of))
        requests += [
            GenerationRequest(comparison_id, prompt_ids, sampling, one.steering, sample, watch=watch)
            for sample in range(body.n)
        ]
    return PreparedComparison(
        id=comparison_id,
        created=int(time.time()),
        seed=seed,
        arms=tuple(arms),
        num_samples=body.n,
        requests=tuple(requests),
        watch=watch,
        edited=tuple(edited_features(one.steering for one in asked)),
        empty_ids=await _empty_prompt(served, body, prompts[0]) if body.metrics else (),
    )


async def _check_model(served: ServedModel, body: ComparisonRequest) -> None:
    """Check the request's own model too, which no arm may need."""
    if body.model and body.model != served.model_id:
        await asyncio.to_thread(served.check_model, body.model)


async def _named(served: ServedModel, body: ComparisonRequest) -> list[NamedArm]:
    """Return what decides which arm is whose control; a model's own id may have an `@` that names no preset."""
    others = [arm.model for arm in body.arms if arm.model not in {None, served.model_id}]
    presets = await asyncio.to_thread(served.presets.snapshot) if others else None
    return [_named_arm(served, arm, place, presets) for place, arm in enumerate(body.arms)]


def _named_arm(served: ServedModel, arm: ArmRequest, place: int, presets: PresetSnapshot | None) -> NamedArm:
    try:
        has_presets = arm.model is not None and bool(served.check_model(arm.model, presets))
    except (InvalidRequestError, ModelNotFoundError) as error:
        raise _of_arm(error, place, has_model=True) from error
    control_of = short_name(arm.control_of, MAX_NAME_CHARS) if arm.control_of is not None else None
    return NamedArm(arm.name, control_of, arm.steering is not None or has_presets)


async def _all_asked(
    served: ServedModel, body: ComparisonRequest, named: Sequence[NamedArm], sources: Sequence[int | None], seed: int
) -> list[Asked]:
    """Return what each arm asks for; a control, what its source does with the change turned."""
    found: dict[int, Asked] = {}
    for place, arm in enumerate(body.arms):
        if sources[place] is not None:
            continue
        model = arm.model or body.model or served.model_id
        try:
            found[place] = await asked_for(served, model, arm.steering)
        except (InvalidRequestError, ModelNotFoundError) as error:
            raise _of_arm(error, place, has_model=arm.model is not None) from error
    for place, (control, source) in enumerate(zip(named, sources, strict=True)):
        if source is not None:
            steering = controlled(control, place, found[source].steering)
            found[place] = replace(found[source], steering=control_steering(steering, seed, control.name))
    return [found[place] for place in range(len(body.arms))]


def _of_arm(
    error: InvalidRequestError | ModelNotFoundError, place: int, *, has_model: bool
) -> InvalidRequestError | ModelNotFoundError:
    """Say the same of the arm's field that was said of a request's."""
    if error.param is None or (error.param == "model" and not has_model):
        return error
    message = _PATH.sub(f"arms[{place}].steering", error.message)
    return type(error)(message, param=f"arms[{place}].{error.param}", code=error.code)


async def _prompts(
    served: ServedModel, body: ComparisonRequest, sources: Sequence[int | None], asked: Sequence[Asked]
) -> list[tuple[int, ...]]:
    """Return each arm's prompt; arms whose conversations are equal share one."""
    messages = [message.as_template_input() for message in body.messages]
    known: dict[tuple[str | None, str | None], tuple[int, ...]] = {}
    prompts = []
    for arm, source, one in zip(body.arms, sources, asked, strict=True):
        system = arm.system if arm.system is not None or source is None else body.arms[source].system
        key = system, one.defaults.system
        if key not in known:
            own = messages if system is None else _with_system(messages, system)
            known[key] = await chat_prompt(served, own, one, add_generation_prompt=body.add_generation_prompt)
        prompts.append(known[key])
    return prompts


def _prompt_param(body: ComparisonRequest, place: int) -> str:
    return "messages" if body.arms[place].system is None else f"arms[{place}].system"


def _with_system(messages: Sequence[dict[str, str]], system: str) -> list[dict[str, str]]:
    """Put a system prompt in place of the one that the messages begin with, or before them."""
    has_one = messages[0]["role"] in {"system", "developer"}
    return [{"role": "system", "content": system}, *messages[1 if has_one else 0 :]]


async def _empty_prompt(served: ServedModel, body: ComparisonRequest, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return the model's template around a user's message without text; where it takes none, what texts begin with.

    A text must follow something, so that is the last token of `prompt_ids` for a model without a BOS.
    """
    nothing = [{"role": "user", "content": ""}]
    try:
        return await chat_prompt(served, nothing, Asked(None), add_generation_prompt=body.add_generation_prompt)
    except InvalidRequestError:
        return text_ids(served.tokenizer, "") or prompt_ids[-1:]

"""From the body of a comparison to arms that the engine can run: prompts, edits and controls."""

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
from steerserve.requests.generation import (
    Behaviour,
    PreparedPrompt,
    choice_limit,
    engine_requests,
    resolve_behaviour,
)
from steerserve.requests.prompts import check_context, render_chat, replace_system_prompt
from steerserve.wire.compare import MAX_NAME_CHARS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.engine.request import GenerationRequest, Watch
    from steerserve.presets.library import PresetSnapshot
    from steerserve.requests.served import ServedModel
    from steerserve.wire.compare import ArmRequest, ComparisonRequest

_SEED_BITS = 53
"""Size of a random seed: every JSON reader represents such a number exactly."""
_STEERING_PATH = re.compile(r"\bsteering(?=\.\w| must be | is nested)")


@dataclass(frozen=True, slots=True)
class PreparedComparison:
    """A comparison that was checked completely."""

    id: str
    created: int
    seed: int
    arms: tuple[Arm, ...]
    num_samples: int
    """Number of samples of each arm."""
    requests: tuple[GenerationRequest, ...]
    """The engine's requests: those of the first arm, then those of the second."""
    watch: Watch | None
    """What every arm watches."""
    edited: tuple[EditedFeatures, ...]
    empty_ids: tuple[int, ...]
    """A prompt without text, which the relevance of a text is measured against; empty without metrics."""

    @property
    def num_prompt_tokens(self) -> int:
        """Number of prompt tokens of all arms."""
        return sum(len(arm.prompt_ids) for arm in self.arms)

    @property
    def num_edits(self) -> int:
        """Number of edits of all arms."""
        return sum(len(arm.steering.edits) for arm in self.arms if arm.steering is not None)


async def prepare_comparison(served: ServedModel, body: ComparisonRequest) -> PreparedComparison:
    """Check a comparison against the model, and render every arm's conversation.

    Raises:
        SteerserveError: the comparison cannot be run; `param` is a path such as `arms[1].steering.edits[0].feature`.
    """
    served.check_ready()
    if body.model and body.model != served.model_id:  # the arms may all have another model
        await asyncio.to_thread(served.check_model, body.model)
    named = await _named_arms(served, body)
    sources = control_sources(named)
    limit = choice_limit(served)
    if len(body.arms) * body.n > limit:
        message = (
            f"The comparison asks for {len(body.arms) * body.n} samples ({len(body.arms)} arms, n={body.n}), and this "
            f"server takes at most {limit} in one request. Send fewer arms, or a smaller 'n'."
        )
        raise InvalidRequestError(message, param="n")
    seed = body.seed if body.seed is not None else secrets.randbits(_SEED_BITS)
    behaviours = await _behaviours(served, body, named, sources, seed)
    prompts = []
    for param, ids, behaviour in zip(
        _prompt_params(body), await _render(served, body, sources, behaviours), behaviours, strict=True
    ):
        max_tokens = check_context(served, len(ids), body.token_limit, behaviour.max_tokens, param=param)
        prompts.append(PreparedPrompt(ids, max_tokens, seed, behaviour))
    comparison_id = f"cmp-{uuid.uuid4().hex}"
    watch, requests = engine_requests(comparison_id, served, body, prompts, can_cut=body.token_limit is None)
    return PreparedComparison(
        id=comparison_id,
        created=int(time.time()),
        seed=seed,
        arms=tuple(
            Arm(arm.name, prompt.ids, prompt.behaviour.steering, arm.control_of)
            for arm, prompt in zip(body.arms, prompts, strict=True)
        ),
        num_samples=body.n,
        requests=requests,
        watch=watch,
        edited=tuple(edited_features(behaviour.steering for behaviour in behaviours)),
        empty_ids=await _empty_prompt(served, body, prompts[0].ids) if body.metrics else (),
    )


async def _named_arms(served: ServedModel, body: ComparisonRequest) -> list[NamedArm]:
    """Return the part of each arm that decides which arm is whose control."""
    others = [arm.model for arm in body.arms if arm.model not in {None, served.model_id}]
    presets = await asyncio.to_thread(served.presets.snapshot) if others else None
    return [_named_arm(served, arm, index, presets) for index, arm in enumerate(body.arms)]


def _named_arm(served: ServedModel, arm: ArmRequest, index: int, presets: PresetSnapshot | None) -> NamedArm:
    try:  # An @ in a model's name does not tell: the id of the served model may have one.
        has_presets = arm.model is not None and bool(served.check_model(arm.model, presets))
    except (InvalidRequestError, ModelNotFoundError) as error:
        raise _error_of_arm(error, index, has_model=True) from error
    control_of = short_name(arm.control_of, MAX_NAME_CHARS) if arm.control_of is not None else None
    return NamedArm(arm.name, control_of, arm.steering is not None or has_presets)


async def _behaviours(
    served: ServedModel, body: ComparisonRequest, named: Sequence[NamedArm], sources: Sequence[int | None], seed: int
) -> list[Behaviour]:
    """Return each arm's behaviour; a control has that of its source, along random directions."""
    behaviours: dict[int, Behaviour] = {}
    for index, arm in enumerate(body.arms):
        if sources[index] is not None:
            continue
        model = arm.model or body.model or served.model_id
        try:
            behaviours[index] = await resolve_behaviour(served, model, arm.steering)
        except (InvalidRequestError, ModelNotFoundError) as error:
            raise _error_of_arm(error, index, has_model=arm.model is not None) from error
    for index, (control, source) in enumerate(zip(named, sources, strict=True)):
        if source is not None:
            steering = controlled(control, index, behaviours[source].steering)
            behaviours[index] = replace(behaviours[source], steering=control_steering(steering, seed, control.name))
    return [behaviours[index] for index in range(len(body.arms))]


def _error_of_arm(
    error: InvalidRequestError | ModelNotFoundError, index: int, *, has_model: bool
) -> InvalidRequestError | ModelNotFoundError:
    """Return an error about a request's field as one about the same field of an arm."""
    if error.param is None or (error.param == "model" and not has_model):
        return error
    message = _STEERING_PATH.sub(f"arms[{index}].steering", error.message)
    return type(error)(message, param=f"arms[{index}].{error.param}", code=error.code)


async def _render(
    served: ServedModel, body: ComparisonRequest, sources: Sequence[int | None], behaviours: Sequence[Behaviour]
) -> list[tuple[int, ...]]:
    """Return each arm's prompt; arms with equal conversations share one."""
    messages = [message.as_template_input() for message in body.messages]
    rendered: dict[tuple[str | None, str | None], tuple[int, ...]] = {}
    prompts = []
    for arm, source, behaviour in zip(body.arms, sources, behaviours, strict=True):
        system = arm.system if arm.system is not None or source is None else body.arms[source].system
        key = system, behaviour.defaults.system
        if key not in rendered:
            conversation = messages if system is None else replace_system_prompt(messages, system)
            rendered[key] = await render_chat(
                served, conversation, behaviour.defaults.system, add_generation_prompt=body.add_generation_prompt
            )
        prompts.append(rendered[key])
    return prompts


def _prompt_params(body: ComparisonRequest) -> list[str]:
    """Return for each arm the field that its prompt comes from."""
    return ["messages" if arm.system is None else f"arms[{index}].system" for index, arm in enumerate(body.arms)]


async def _empty_prompt(served: ServedModel, body: ComparisonRequest, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chat template around a user's message without text.

    If the template refuses that, return the token that texts begin with: BOS, or for a model without one the last token
    of `prompt_ids`.
    """
    messages = [{"role": "user", "content": ""}]
    try:
        return await render_chat(served, messages, None, add_generation_prompt=body.add_generation_prompt)
    except InvalidRequestError:
        return text_ids(served.tokenizer, "") or prompt_ids[-1:]

"""The checks of presets: generate what a check's prompt gives, measure the text, and judge it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.compare.arms import Arm
from steerserve.compare.metrics import repetition
from steerserve.compare.scoring import Scorer
from steerserve.core.errors import InvalidRequestError, SteerserveError
from steerserve.requests.generation import prepare_text
from steerserve.requests.running import Generation, GenerationObserver

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from steerserve.compare.metrics import SampleScore
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.request import GenerationRequest
    from steerserve.presets.preset import Preset
    from steerserve.presets.schema import Activates, Check
    from steerserve.requests.served import ServedModel

_DEFAULT_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """What a check's prompt gave; a number is None if the check has no requirement for it."""

    text: str
    activation: float | None = None
    """Largest activation of the check's feature over the generated tokens, read by the unsteered model."""
    kl: float | None = None
    """Mean KL(steered || unsteered) in nats, over the positions at which a token was chosen."""
    repetition: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a text meets one requirement of a check."""

    requirement: str
    """Such as `KL at most 2`."""
    result: str
    is_ok: bool


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The text that a check generated, and a verdict for each of its requirements."""

    text: str
    verdicts: tuple[Verdict, ...]


async def run_check(served: ServedModel, preset: Preset, check: Check) -> CheckResult:
    """Generate the check's text as a request with the preset would, and judge it; a failure is a verdict too."""
    try:
        generated = await _generate(served, preset, check)
    except SteerserveError as error:
        return CheckResult("", (Verdict("the check runs", error.message, is_ok=False),))
    return CheckResult(generated.text, tuple(verdicts_of(check, generated)))


def verdicts_of(check: Check, generated: GeneratedText) -> Iterator[Verdict]:
    """Judge a text by every requirement of a check; upper and lower case are different letters."""
    if check.activates is not None and generated.activation is not None:
        requirement = f"feature {check.activates.feature} above {check.activates.above:g}"
        yield Verdict(requirement, f"{generated.activation:.3g}", generated.activation > check.activates.above)
    if check.contains_any is not None:
        phrases = [phrase for phrase in check.contains_any if phrase in generated.text]
        yield Verdict(f"any of {_listed(check.contains_any)}", _listed(phrases) or "none", bool(phrases))
    if check.contains_none is not None:
        phrases = [phrase for phrase in check.contains_none if phrase in generated.text]
        yield Verdict(f"none of {_listed(check.contains_none)}", _listed(phrases) or "none", not phrases)
    if check.max_kl is not None and generated.kl is not None:
        yield Verdict(f"KL at most {check.max_kl:g}", f"{generated.kl:.3g}", generated.kl <= check.max_kl)
    if check.max_repetition is not None and generated.repetition is not None:
        is_ok = generated.repetition <= check.max_repetition
        yield Verdict(f"repetition at most {check.max_repetition:g}", f"{generated.repetition:.2f}", is_ok)


async def measure_kl(served: ServedModel, arm: Arm, token_ids: Sequence[int]) -> float:
    """Return the mean KL(steered || unsteered) of a text in nats; both models read the same tokens."""
    # A text without tokens is measured where the model ended it, after the prompt. Any token stands for that end, since
    # only the logits before a token are compared.
    score = await _score(served, arm, token_ids or arm.prompt_ids[-1:])
    return score.kl or 0.0


async def largest_activation(
    served: ServedModel, arm: Arm, token_ids: Sequence[int], dictionary: Dictionary, feature: int
) -> float:
    """Return a feature's largest activation over the generated tokens, as the unsteered model reads them.

    Special tokens and attention sinks do not count; a text without other tokens gives 0.
    """
    score = await _score(served, Arm(arm.name, arm.prompt_ids), token_ids, dictionary, feature)
    acts = score.by_token[dictionary.id].flatten().tolist() if dictionary.id in score.by_token else []
    return max((act for act in acts if not math.isnan(act)), default=0.0)


async def _generate(served: ServedModel, preset: Preset, check: Check) -> GeneratedText:
    """Generate and measure the text of a check.

    Raises:
        SteerserveError: the preset or the check cannot be used with the served model, or the generation fails.
    """
    request = await _request(served, preset, check)
    with Generation(served.submit([request]), GenerationObserver()) as generation:
        [event] = await generation.results()
    arm = Arm(preset.name, request.prompt_ids, request.steering)
    activation = None
    if (activates := check.activates) is not None:
        dictionary = _dictionary(served, activates)
        activation = await largest_activation(served, arm, event.token_ids, dictionary, activates.feature)
    kl = await measure_kl(served, arm, event.token_ids) if check.max_kl is not None else None
    return GeneratedText(event.text, activation, kl, repetition(event.token_ids))


async def _request(served: ServedModel, preset: Preset, check: Check) -> GenerationRequest:
    sampling = preset.content.sampling
    max_tokens, seed = check.max_tokens, check.seed
    if max_tokens is None and sampling.max_tokens is None:
        max_tokens = _DEFAULT_MAX_TOKENS
    if seed is None and sampling.seed is None:
        seed = 0
    return await prepare_text(served, check.prompt, presets=[preset.name], max_tokens=max_tokens, seed=seed)


def _dictionary(served: ServedModel, activates: Activates) -> Dictionary:
    dictionary = served.registry.snapshot().find(activates.dictionary, "activates.dictionary")
    if activates.feature >= dictionary.d_sae:
        message = f"Dictionary {dictionary.id!r} has features 0 to {dictionary.d_sae - 1}."
        raise InvalidRequestError(message, param="activates.feature")
    return dictionary


async def _score(
    served: ServedModel,
    arm: Arm,
    token_ids: Sequence[int],
    dictionary: Dictionary | None = None,
    feature: int = 0,
) -> SampleScore:
    """Read a text in pieces between the engine's steps; with a dictionary, measure the feature at every token."""
    dictionaries = [dictionary] if dictionary is not None else []
    features = {dictionary.id: [feature]} if dictionary is not None else {}
    scorer = Scorer(served.lens, served.engine.median_norms, dictionaries, (), features)
    try:
        return await asyncio.wrap_future(served.scoring.submit(scorer, arm, token_ids, lambda: True))
    finally:
        served.scoring.release(scorer)


def _listed(phrases: Sequence[str]) -> str:
    return ", ".join(repr(phrase) for phrase in phrases)

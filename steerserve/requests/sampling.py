"""Sampling parameters: those of the request, else of its presets, else of the configuration, else OpenAI's defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from steerserve.core.errors import InvalidRequestError
from steerserve.core.findings import show_value
from steerserve.core.literals import JSON_WORDS
from steerserve.engine.request import SamplingParams

if TYPE_CHECKING:
    from steerserve.core.config import SamplingSettings
    from steerserve.presets.schema import PresetSampling
    from steerserve.wire.generation import GenerationFields

Number = TypeVar("Number", int, float)

_MAX_ID_DIGITS = 10
_LEAST_TEMPERATURE = 1e-5
"""Logits divided by a smaller temperature leave the range of float32, so sampling is greedy below it, as in vLLM."""


def sampling_params(
    body: GenerationFields,
    *,
    defaults: SamplingSettings,
    preset: PresetSampling,
    vocab_size: int,
    max_tokens: int,
    seed: int,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None,
) -> SamplingParams:
    """Build the parameters of one prompt's samples.

    Raises:
        InvalidRequestError: the model does not have a token id, or `min_tokens` is over the limit.
    """
    if body.min_tokens > max_tokens:
        message = (
            f"Invalid value for 'min_tokens': at most {max_tokens} tokens can be generated, but got {body.min_tokens}."
        )
        raise InvalidRequestError(message, param="min_tokens")
    for index, token_id in enumerate(body.stop_token_ids):
        _check_token_id(token_id, vocab_size, f"stop_token_ids[{index}]")
    temperature = _first(body.temperature, preset.temperature, defaults.temperature, default=1.0)
    sent = body.model_fields_set
    presence = body.presence_penalty if "presence_penalty" in sent else None
    frequency = body.frequency_penalty if "frequency_penalty" in sent else None
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= _LEAST_TEMPERATURE else 0.0,
        top_p=_first(body.top_p, preset.top_p, defaults.top_p, default=1.0),
        top_k=max(_first(body.top_k, preset.top_k, defaults.top_k, default=0), 0),
        min_p=_first(body.min_p, preset.min_p, defaults.min_p, default=0.0),
        presence_penalty=_first(presence, preset.presence_penalty, default=0.0),
        frequency_penalty=_first(frequency, preset.frequency_penalty, default=0.0),
        repetition_penalty=_first(
            body.repetition_penalty, preset.repetition_penalty, defaults.repetition_penalty, default=1.0
        ),
        logit_bias={_token_id(key, vocab_size): value for key, value in body.logit_bias.items()},
        seed=seed,
        stop=body.stop if "stop" in sent else preset.stops or (),
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
        include_stop=body.include_stop_str_in_output,
    )


def _first(*values: Number | None, default: Number) -> Number:
    return next((value for value in values if value is not None), default)


def _token_id(key: str, vocab_size: int) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS):
        got = show_value(key, JSON_WORDS)
        message = f"Invalid value for 'logit_bias': keys must be token ids written as digits, but got {got}."
        raise InvalidRequestError(message, param="logit_bias")
    _check_token_id(int(key), vocab_size, "logit_bias")
    return int(key)


def _check_token_id(token_id: int, vocab_size: int, param: str) -> None:
    if not 0 <= token_id < vocab_size:
        got = show_value(token_id, JSON_WORDS)
        message = f"Invalid value for '{param}': token ids are 0 to {vocab_size - 1}, but got {got}."
        raise InvalidRequestError(message, param=param)

"""`/v1/compare` and `/v1/comparisons`: the request, the comparison, and the events of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from steerserve.core.errors import InvalidRequestError, UnsupportedParameterError
from steerserve.core.names import nearest_name, short_name
from steerserve.wire.base import RequestModel, ResponseModel, absent_if_none
from steerserve.wire.chat import ChatCompletionRequest
from steerserve.wire.unsupported import CHAT, Unsupported, documented, refuse_unsupported
from steerserve.wire.usage import Usage
from steerserve.wire.watching import WatchedToken, features_field, prompt_features_field

MAX_ARMS = 16
MAX_NAME_CHARS = 128

COMPARE: Mapping[str, Unsupported] = {
    **{name: rule for name, rule in CHAT.items() if name != "store"},
    "steering": Unsupported("Each arm has its own: arms[0].steering."),
    "logprobs": Unsupported("Ask for those of one arm with /v1/chat/completions and the same seed.", (False,)),
    "top_logprobs": Unsupported("Ask for those of one arm with /v1/chat/completions and the same seed.", (0,)),
}


class ArmRequest(RequestModel):
    """One of the generations that are put side by side."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS, description="Names it in the answer; no two are alike.")
    steering: Any = Field(
        default=None,
        description="Its edits, as in a chat request; `null` for the unsteered model.",
        json_schema_extra={
            "anyOf": [
                {"type": "array", "items": {"$ref": "#/components/schemas/Edit"}},
                {"$ref": "#/components/schemas/Steering"},
                {"type": "null"},
            ]
        },
    )
    model: str | None = Field(default=None, description="In place of the request's, such as `model@preset`.")
    system: str | None = Field(
        default=None,
        description="Its own system prompt, in place of the one that the messages begin with, or before them.",
    )
    control_of: str | None = Field(
        default=None,
        description=(
            "The name of an arm whose edits it repeats along random directions, the change kept to the same size. It "
            "takes that arm's system prompt too, unless it has one."
        ),
    )


class ComparisonRequest(ChatCompletionRequest):
    """A conversation that several arms continue with common noise. Unknown fields are ignored but in the arms."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["properties"].update(documented(COMPARE)))

    model: str = Field(default="", description="The model's id; may be left out.", examples=["smollm2-135m-instruct"])
    arms: list[ArmRequest] = Field(min_length=1, max_length=MAX_ARMS, description="The first is compared against.")
    n: int = Field(default=1, ge=1, le=128, description="Samples of each arm.")
    metrics: bool = Field(default=True, description="Measure every sample; that takes a few passes of the model more.")
    by_token: bool = Field(
        default=False, description="Give `features_by_token` and `tokens` with every sample's metrics too."
    )
    store: bool = Field(default=True, description="Keep the comparison, so that /v1/comparisons lists it.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if isinstance(data, dict):
            for field in ("tools", "functions"):
                if data.get(field):
                    message = f"'{field}' is not supported in a comparison. Leave it out."
                    raise UnsupportedParameterError(message, param=field)
            refuse_unsupported(data, COMPARE)
            _refuse_unknown_keys(data.get("arms"))
        return data


def _refuse_unknown_keys(arms: object) -> None:
    """Refuse a key that no arm has: a typo would silently be another experiment."""
    for place, arm in enumerate(arms if isinstance(arms, list) else []):
        keys = arm if isinstance(arm, dict) else {}
        unknown = next((key for key in keys if key not in ArmRequest.model_fields), None)
        if unknown is not None:
            near = nearest_name(unknown, ArmRequest.model_fields)
            hint = f"Did you mean '{near}'?" if near else f"An arm has {', '.join(ArmRequest.model_fields)}."
            param = f"arms[{place}].{short_name(unknown)}"
            raise InvalidRequestError(f"Unknown parameter: '{param}'. {hint}", param=param, code="unknown_parameter")


class SideEffect(ResponseModel):
    """A feature that nobody edited and that is more, or less, active than in the first arm's text."""

    dictionary: str = Field(description="The dictionary's id.")
    feature: int = Field(description="The feature.")
    change: float = Field(description="Of its mean activation over the text.")
    label: str | None = Field(description="What the feature means, where that is known.")


class SampleMetrics(ResponseModel):
    """What was measured of a sample, over its generated tokens (one that ended it not among them)."""

    surprise: float | None = Field(
        description="Mean negative log-likelihood under the unsteered model, nats a token; null for an empty text."
    )
    kl: float | None = Field(description="KL(steered || unsteered) along the text, mean nats a token.")
    kl_p95: float | None = Field(description="Its 95th percentile over the tokens.")
    repetition: float = Field(description="Share of 3-grams that were there before; over 0.2 reads as broken.")
    distinct_2: float = Field(description="Different 2-grams over all.")
    relevance: float | None = Field(
        description="(log p(text | prompt) - log p(text | empty prompt)) a token, under the unsteered model."
    )
    first_divergence: int | None = Field(
        description="Index of the first token that differs from the first arm's same sample; null for none."
    )
    features: dict[str, dict[str, float | None]] = Field(
        description="Mean activation of every edited feature when the unsteered model reads the text, by dictionary."
    )
    side_effects: list[SideEffect] = Field(description="The largest other shifts against the first arm's same sample.")
    tokens: list[str] | None = absent_if_none("What each token added to the text; only with `by_token`.")
    features_by_token: dict[str, dict[str, list[float | None]]] | None = absent_if_none(
        "What `features` is the mean of, token by token; null at special tokens and sinks. Only with `by_token`."
    )


class Sample(ResponseModel):
    """One generation of one arm."""

    index: int = Field(description="0 to n - 1. Samples of one index share their noise.")
    text: str = Field(description="What was generated.")
    finish_reason: Literal["stop", "length"] = Field(description="`length`: the token limit ended it.")
    stop_reason: str | int | None = absent_if_none("The stop string or stop token that ended it.")
    usage: Usage = Field(description="Its tokens.")
    steering: dict[str, Any] | None = absent_if_none("What was really done; absent without steering.")
    metrics: SampleMetrics | None = absent_if_none("Unless `metrics` was false.")
    features: list[WatchedToken] | None = features_field()
    prompt_features: list[WatchedToken] | None = prompt_features_field()


class ArmResult(ResponseModel):
    """One arm with its samples."""

    name: str = Field(description="The arm's name.")
    control_of: str | None = absent_if_none("The arm of which it is the control.")
    prompt_sha256: str | None = absent_if_none(
        "sha256 of its prompt's token ids as 64-bit little-endian integers, the system prompts of presets among them. "
        "Only comparisons that were kept by older versions have none."
    )
    samples: list[Sample] = Field(description="In order of `index`.")


class Comparison(ResponseModel):
    """The arms side by side."""

    id: str = Field(description="Starts with `cmp-`.")
    object: Literal["comparison"] = Field(default="comparison", description="Always this.")
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="The model's id.")
    seed: int = Field(description="The request's, or the one that was drawn: with it the comparison can be repeated.")
    kept: bool = Field(description="Whether /v1/comparisons has it.")
    arms: list[ArmResult] = Field(description="In the request's order.")
    metadata: dict[str, str] | None = absent_if_none("The request's own.")
    request: dict[str, Any] | None = absent_if_none("What was asked for; only where a kept comparison is read.")


class ArmDelta(ResponseModel):
    """Event `arm.delta`: new text of one sample."""

    arm: str = Field(description="The arm's name.")
    index: int = Field(description="The sample.")
    delta: str = Field(description="New text, never half a character.")
    features: list[WatchedToken] | None = features_field()


class ArmDone(ResponseModel):
    """Event `arm.done`: a sample is complete, its metrics with it."""

    arm: str = Field(description="The arm's name.")
    index: int = Field(description="The sample.")
    sample: Sample = Field(description="The whole sample.")


class KeptComparison(ResponseModel):
    """What lists show of a comparison."""

    id: str = Field(description="Its id.")
    object: Literal["comparison"] = Field(default="comparison", description="Always this.")
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="The model's id.")
    seed: int = Field(description="Its seed.")
    arms: list[str] = Field(description="The names of its arms.")
    n: int = Field(description="Samples of each arm.")
    prompt: str = Field(description="The beginning of the last message.")


class ComparisonList(ResponseModel):
    """Kept comparisons, newest first."""

    object: Literal["list"] = Field(default="list", description="Always this.")
    data: list[KeptComparison] = Field(description="The comparisons.")
    has_more: bool = Field(description="Whether there are older ones.")


class DeletedComparison(ResponseModel):
    """A comparison that is kept no longer."""

    id: str = Field(description="Its id.")
    object: Literal["comparison"] = Field(default="comparison", description="Always this.")
    deleted: Literal[True] = Field(default=True, description="Always this.")

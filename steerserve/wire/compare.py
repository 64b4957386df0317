"""`/v1/compare` and `/v1/comparisons`: the request, the comparison, and the events of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from steerserve.core.errors import UnsupportedParameterError
from steerserve.wire.base import RequestModel, ResponseModel, absent_if_none, refuse_unknown_key
from steerserve.wire.chat import ChatCompletionRequest
from steerserve.wire.generation import Usage
from steerserve.wire.unsupported import CHAT, Unsupported, documented, refuse_unsupported
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
    """One of the generations to compare."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    name: str = Field(
        min_length=1, max_length=MAX_NAME_CHARS, description="Name of the arm in the answer; unique in the comparison."
    )
    steering: Any = Field(
        default=None,
        description="Edits of this arm, as in a chat request; `null` for the unsteered model.",
        json_schema_extra={
            "anyOf": [
                {"type": "array", "items": {"$ref": "#/components/schemas/Edit"}},
                {"$ref": "#/components/schemas/Steering"},
                {"type": "null"},
            ]
        },
    )
    model: str | None = Field(
        default=None, description="Model of this arm, such as `model@preset`. Default: the request's `model`."
    )
    system: str | None = Field(
        default=None,
        description="System prompt of this arm; it replaces the one that the messages begin with, or goes before them.",
    )
    control_of: str | None = Field(
        default=None,
        description=(
            "Name of another arm that this one is the control of: it applies that arm's edits along random directions, "
            "with changes of the same size. It also uses that arm's system prompt, unless it has its own."
        ),
    )


class ComparisonRequest(ChatCompletionRequest):
    """A conversation that several arms continue with common noise. Unknown fields are ignored, except in the arms."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["properties"].update(documented(COMPARE)))

    model: str = Field(
        default="", description="The model's id. Default: the served model.", examples=["smollm2-135m-instruct"]
    )
    arms: list[ArmRequest] = Field(
        min_length=1, max_length=MAX_ARMS, description="The arms; each is compared with the first."
    )
    n: int = Field(default=1, ge=1, le=128, description="Number of samples of each arm.")
    metrics: bool = Field(
        default=True, description="Whether to measure every sample, which takes a few more forward passes."
    )
    by_token: bool = Field(
        default=False, description="Whether the metrics of every sample also have `features_by_token` and `tokens`."
    )
    store: bool = Field(default=True, description="Whether to keep the comparison, so that /v1/comparisons lists it.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if isinstance(data, dict):
            for field in ("tools", "functions"):
                if data.get(field):
                    message = f"'{field}' is not supported in a comparison. Leave it out."
                    raise UnsupportedParameterError(message, param=field)
            refuse_unsupported(data, COMPARE)
            arms = data.get("arms")
            for index, arm in enumerate(arms if isinstance(arms, list) else []):
                refuse_unknown_key(arm, ArmRequest.model_fields, f"arms[{index}].")
        return data


class SideEffect(ResponseModel):
    """An unedited feature whose activation differs from its activation in the first arm's text."""

    dictionary: str = Field(description="The dictionary's id.")
    feature: int = Field(description="Index of the feature in the dictionary.")
    change: float = Field(description="Change of the feature's mean activation over the text.")
    label: str | None = Field(description="Label of the feature; null if it has none.")


class SampleMetrics(ResponseModel):
    """Measurements of a sample over its generated tokens; an end-of-sequence token does not count."""

    surprise: float | None = Field(
        description="Mean negative log-likelihood under the unsteered model, in nats a token; null for an empty text."
    )
    kl: float | None = Field(description="KL(steered || unsteered) along the text: mean, in nats a token.")
    kl_p95: float | None = Field(description="KL(steered || unsteered) along the text: 95th percentile over tokens.")
    repetition: float = Field(
        description="Share of 3-grams that occurred earlier in the text; above 0.2 the text reads as broken."
    )
    distinct_2: float = Field(description="Number of different 2-grams divided by the number of 2-grams.")
    relevance: float | None = Field(
        description="(log p(text | prompt) - log p(text | empty prompt)) a token, under the unsteered model."
    )
    first_divergence: int | None = Field(
        description="Index of the first token that differs from the first arm's sample of the same index; null if none."
    )
    features: dict[str, dict[str, float | None]] = Field(
        description="Mean activation of every edited feature if the unsteered model reads the text, by dictionary."
    )
    side_effects: list[SideEffect] = Field(
        description="The largest changes of other features against the first arm's sample of the same index."
    )
    tokens: list[str] | None = absent_if_none("The text that each token added; only with `by_token`.")
    features_by_token: dict[str, dict[str, list[float | None]]] | None = absent_if_none(
        "Activations of the edited features at each token, of which `features` has the means; null at special tokens "
        "and attention sinks. Only with `by_token`."
    )


class Sample(ResponseModel):
    """One generation of one arm."""

    index: int = Field(description="Index of the sample, from 0 to n - 1. Samples of equal index share their noise.")
    text: str = Field(description="The generated text.")
    finish_reason: Literal["stop", "length"] = Field(
        description="`stop`: the model or a stop string ended the text. `length`: the token limit ended it."
    )
    stop_reason: str | int | None = absent_if_none("The stop string or stop token that ended the text.")
    usage: Usage = Field(description="Numbers of tokens read and generated.")
    steering: dict[str, Any] | None = absent_if_none("Receipt: the edits that were applied. Absent without steering.")
    metrics: SampleMetrics | None = absent_if_none("Measurements of the sample; absent if `metrics` was false.")
    features: list[WatchedToken] | None = features_field()
    prompt_features: list[WatchedToken] | None = prompt_features_field()


class ArmResult(ResponseModel):
    """One arm with its samples."""

    name: str = Field(description="The arm's name.")
    control_of: str | None = absent_if_none("Name of the arm that this one is the control of.")
    prompt_sha256: str | None = absent_if_none(
        "SHA-256 of the prompt's token ids as 64-bit little-endian integers, system prompts of presets included. "
        "Absent only in comparisons that an older version kept."
    )
    samples: list[Sample] = Field(description="The samples, in order of `index`.")


class Comparison(ResponseModel):
    """The arms with their samples."""

    id: str = Field(description="Id of the comparison; starts with `cmp-`.")
    object: Literal["comparison"] = Field(default="comparison", description="Always `comparison`.")
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="The model's id.")
    seed: int = Field(description="The request's seed, or the one that was drawn; with it the comparison is repeated.")
    kept: bool = Field(description="Whether /v1/comparisons lists the comparison.")
    arms: list[ArmResult] = Field(description="The arms, in the request's order.")
    metadata: dict[str, str] | None = absent_if_none("The request's `metadata`.")
    request: dict[str, Any] | None = absent_if_none("The request; only in a kept comparison that is read again.")


class ArmDelta(ResponseModel):
    """Event `arm.delta`: new text of one sample."""

    arm: str = Field(description="The arm's name.")
    index: int = Field(description="Index of the sample.")
    delta: str = Field(description="New text. Characters are always whole.")
    features: list[WatchedToken] | None = features_field()


class ArmDone(ResponseModel):
    """Event `arm.done`: a sample is complete and measured."""

    arm: str = Field(description="The arm's name.")
    index: int = Field(description="Index of the sample.")
    sample: Sample = Field(description="The whole sample.")


class KeptComparison(ResponseModel):
    """A kept comparison as lists show it."""

    id: str = Field(description="Id of the comparison.")
    object: Literal["comparison"] = Field(default="comparison", description="Always `comparison`.")
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="The model's id.")
    seed: int = Field(description="Seed of the comparison.")
    arms: list[str] = Field(description="The names of the arms.")
    n: int = Field(description="Number of samples of each arm.")
    prompt: str = Field(description="The beginning of the last message.")


class ComparisonList(ResponseModel):
    """Kept comparisons, the newest first."""

    object: Literal["list"] = Field(default="list", description="Always `list`.")
    data: list[KeptComparison] = Field(description="The comparisons.")
    has_more: bool = Field(description="Whether a larger `offset` returns older comparisons.")


class DeletedComparison(ResponseModel):
    """A comparison that was deleted."""

    id: str = Field(description="Id of the comparison.")
    object: Literal["comparison"] = Field(default="comparison", description="Always `comparison`.")
    deleted: Literal[True] = Field(default=True, description="Always true.")

"""The field `features` of generating routes: the options in a request, and the activations in the answer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from steerserve.wire.base import RequestModel, ResponseModel, absent_if_none, refuse_unknown_key
from steerserve.wire.texts import MAX_DICTIONARIES, MAX_TOP, MAX_WATCHED, TokenActivations


class FeatureOptions(RequestModel):
    """Which activations the answer has for each token."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    top: int = Field(default=8, ge=0, le=MAX_TOP, description="Number of strongest features to return.")
    watch: list[int] = Field(
        default_factory=list,
        max_length=MAX_WATCHED,
        description="Indices of features to return at every token, even if inactive; they apply to every dictionary in "
        "`dictionaries`.",
    )
    dictionaries: list[str] = Field(
        default_factory=list,
        max_length=MAX_DICTIONARIES,
        description="Dictionary ids. Default: the default dictionary.",
    )
    prompt: bool = Field(default=False, description="Whether to return the activations at the prompt's tokens too.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        refuse_unknown_key(data, cls.model_fields, "features.")
        return data


def _expand_boolean(value: object) -> object:
    """Return the options that `true` stands for, and None for `false`."""
    if isinstance(value, bool):
        return {} if value else None
    if isinstance(value, dict):
        return value
    kind, expected = "one_or_many", "a boolean or an object"
    raise PydanticCustomError(kind, "{expected}", {"expected": expected})


Features = Annotated[
    FeatureOptions | None,
    BeforeValidator(_expand_boolean),
    Field(
        default=None,
        description="Whether to return feature activations with each token: `true` for the defaults, or options.",
        examples=[{"top": 8, "watch": [4242]}],
        json_schema_extra={
            "anyOf": [{"type": "boolean"}, {"$ref": "#/components/schemas/FeatureOptions"}, {"type": "null"}]
        },
    ),
]
"""The request's field; null and false mean that nothing is watched."""


class WatchedActivations(TokenActivations):
    """One dictionary's activations at a token, before this request's edits at its hook point."""

    edited: dict[str, float] | None = absent_if_none(
        "The features, by index, that this request's edits changed at this token, with their activations afterwards."
    )


class WatchedToken(ResponseModel):
    """A token with feature activations: those from which a generated token was chosen, or those at a prompt token."""

    token: str = Field(
        description="The token's text. A token that is only part of a character reads as the replacement character."
    )
    token_id: int = Field(description="The token's id.")
    position: int = Field(
        description="Position at which the activations were read, from 0: the position of a prompt token itself, or "
        "the position before a generated token."
    )
    dictionaries: dict[str, WatchedActivations] = Field(description="The activations, by dictionary id.")


def features_field() -> Any:  # noqa: ANN401 as pydantic's own Field
    """Declare the field with the activations at generated tokens."""
    return absent_if_none("Feature activations, one entry for each token; only if the request has `features`.")


def prompt_features_field() -> Any:  # noqa: ANN401 as pydantic's own Field
    """Declare the field with the activations at prompt tokens."""
    return absent_if_none(
        "Feature activations, one entry for each prompt token; only with `features.prompt`. A stream has them in "
        "`features` of the choice's first chunk."
    )

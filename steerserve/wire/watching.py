"""The field `features` of generating routes: what is asked for, and what each token then carries."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from steerserve.wire.base import RequestModel, ResponseModel, absent_if_none, refuse_unknown_key
from steerserve.wire.texts import MAX_DICTIONARIES, MAX_TOP, MAX_WATCHED, TokenActivations


class FeatureOptions(RequestModel):
    """Which activations are given with each token."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    top: int = Field(default=8, ge=0, le=MAX_TOP, description="How many of the strongest features to give.")
    watch: list[int] = Field(
        default_factory=list,
        max_length=MAX_WATCHED,
        description="Features to give with every token, whatever they are; of every dictionary that is named.",
    )
    dictionaries: list[str] = Field(
        default_factory=list, max_length=MAX_DICTIONARIES, description="Dictionary ids; the default one if empty."
    )
    prompt: bool = Field(default=False, description="Give the prompt's tokens too.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        refuse_unknown_key(data, cls.model_fields, "features.")
        return data


def _spelled_out(value: object) -> object:
    """Return what `true` and `false` stand for."""
    if isinstance(value, bool):
        return {} if value else None
    if isinstance(value, dict):
        return value
    kind, expected = "one_or_many", "a boolean or an object"
    raise PydanticCustomError(kind, "{expected}", {"expected": expected})


Features = Annotated[
    FeatureOptions | None,
    BeforeValidator(_spelled_out),
    Field(
        default=None,
        description="Give live activations with each token: `true` for the defaults, or what to give.",
        examples=[{"top": 8, "watch": [4242]}],
        json_schema_extra={
            "anyOf": [{"type": "boolean"}, {"$ref": "#/components/schemas/FeatureOptions"}, {"type": "null"}]
        },
    ),
]
"""The request's field; null and false ask for nothing."""


class WatchedActivations(TokenActivations):
    """What one dictionary reads at a position, before this request's edits at its hook point."""

    edited: dict[str, float] | None = absent_if_none(
        "Features, by index, whose activations this request's edits changed there, with what they are after that."
    )


class WatchedToken(ResponseModel):
    """A generated token with what the model activated when it chose it, or a prompt's with what it activates."""

    token: str = Field(description="Its text; a part of a character reads as the replacement character.")
    token_id: int = Field(description="Its id.")
    position: int = Field(
        description="Where the activations were read, from 0: a prompt token's own place, or the place before a "
        "generated token."
    )
    dictionaries: dict[str, WatchedActivations] = Field(description="By dictionary id.")


def features_field() -> Any:  # noqa: ANN401 as pydantic's own Field
    """Declare a choice's activations, one entry a token."""
    return absent_if_none("Of the tokens here, one entry a token, where `features` asked for it.")


def prompt_features_field() -> Any:  # noqa: ANN401 as pydantic's own Field
    """Declare a whole choice's activations over its prompt."""
    return absent_if_none(
        "Of the prompt's tokens, with `features.prompt`; a stream has them in `features` of the choice's first chunk."
    )

"""`/v1/features/inspect` and `/v1/features/contrast`: features that texts activate, and features that separate them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from steerserve.core.errors import InvalidRequestError
from steerserve.core.literals import MIN_TEXTS, Role
from steerserve.wire.base import ResponseModel, StrictRequestModel, absent_if_none
from steerserve.wire.messages import MAX_MESSAGES, Message

MAX_TOP = 64
MAX_WATCHED = 64
MAX_DICTIONARIES = 16
MAX_TEXTS = 200
MAX_TEXT_CHARS = 20_000
MAX_LISTED = 100
MAX_EDITS = 16
_MAX_INDEX = 2**31 - 1

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
Texts = Annotated[list[Text], Field(min_length=MIN_TEXTS, max_length=MAX_TEXTS, fail_fast=True)]
FeatureIndex = Annotated[int, Field(ge=0, le=_MAX_INDEX)]


class InspectRequest(StrictRequestModel):
    """A text, or a conversation, to inspect."""

    model: str | None = Field(default=None, description="Id of the served model. Default: the served model.")
    text: str | None = Field(
        default=None,
        min_length=1,
        description="The text. It is read after a BOS token if the model has one, because dictionaries are trained so.",
        examples=["The bridge is closed."],
    )
    messages: list[Message] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description="Instead of `text`: a conversation, rendered with the model's chat template.",
    )
    add_generation_prompt: bool = Field(
        default=False,
        description="With `messages`: whether the template opens an assistant's message after the last message.",
    )
    dictionaries: list[str] = Field(
        default_factory=list,
        max_length=MAX_DICTIONARIES,
        description="Dictionary ids. Default: the default dictionary.",
    )
    top: int = Field(default=8, ge=0, le=MAX_TOP, description="Number of strongest features to return.")
    watch: list[FeatureIndex] = Field(
        default_factory=list,
        max_length=MAX_WATCHED,
        description="Indices of features to return at every token, even if inactive.",
    )

    @model_validator(mode="after")
    def _one_text(self) -> InspectRequest:
        if (self.text is None) == (self.messages is None):
            message = "Send exactly one of 'text' and 'messages'."
            raise InvalidRequestError(message, param="text")
        return self


class ActiveFeature(ResponseModel):
    """A feature that is active at a token."""

    feature: int = Field(description="Index of the feature in the dictionary.")
    activation: float = Field(description="Activation of the feature at this token.")
    label: str | None = Field(description="Label of the feature; null if it has none.")


class TokenActivations(ResponseModel):
    """One dictionary's activations at a token."""

    top: list[ActiveFeature] = Field(description="The strongest active features, strongest first.")
    watch: list[float] = Field(description="Activations of the watched features, in the order of the request.")
    skipped: Literal["special", "sink"] | None = absent_if_none(
        "Why the dictionary does not read this token: it is a special token or an attention sink."
    )


class InspectedToken(ResponseModel):
    """One token of the text."""

    token: str = Field(
        description="The token's text. A token that is only part of a character reads as the replacement character."
    )
    token_id: int = Field(description="The token's id.")
    position: int = Field(description="Position of the token in the text, from 0.")
    dictionaries: dict[str, TokenActivations] = Field(description="The activations, by dictionary id.")


class StrongFeature(ActiveFeature):
    """A feature over the whole text; `activation` is its largest activation."""

    position: int = Field(description="Position of the token at which the activation is largest.")
    token: str = Field(description="Text of that token.")
    mean_activation: float = Field(description="Mean activation over all tokens that the dictionary reads.")
    tokens_active: int = Field(description="Number of tokens at which the feature is active.")


class InspectionObject(ResponseModel):
    """The features that a text activates."""

    object: Literal["inspection"] = Field(default="inspection", description="Always `inspection`.")
    model: str = Field(description="The model's id.")
    tokens: list[InspectedToken] = Field(description="All tokens of the text, special tokens included.")
    strongest: dict[str, list[StrongFeature]] = Field(
        description="The strongest features over the whole text, by dictionary id."
    )


class ContrastRequest(StrictRequestModel):
    """Two sets of texts that should differ in one thing, and in as little else as possible."""

    model: str | None = Field(default=None, description="Id of the served model. Default: the served model.")
    positive: Texts = Field(description="Texts with the property to look for.")
    negative: Texts = Field(description="Texts without it.")
    dictionary: str | None = Field(default=None, description="Dictionary id. Default: the default dictionary.")
    limit: int = Field(default=20, ge=1, le=MAX_LISTED, description="Largest number of features to return.")
    max_edits: int = Field(default=3, ge=0, le=MAX_EDITS, description="Largest number of edits in `steering`.")


class ContrastFeature(ResponseModel):
    """A feature whose activations separate the two sets."""

    feature: int = Field(description="Index of the feature in the dictionary.")
    label: str | None = Field(description="Label of the feature; null if it has none.")
    auc: float = Field(
        description="Probability that the feature's largest activation is larger on a positive text than on a negative "
        "one: 1 marks the positive set, 0 the negative set."
    )
    held_out_auc: float = Field(
        description="Mean AUC on held-out texts of the feature that had this rank on the other texts; chance is 0.5."
    )
    p_value: float = Field(
        description="Share of random assignments of the texts to the sets that some feature separates as well."
    )
    mean_difference: float = Field(
        description="Mean of the largest activations on the positive texts, less that on the negative texts."
    )
    positive_mean: float = Field(description="Mean of the largest activations on the positive texts.")
    negative_mean: float = Field(description="Mean of the largest activations on the negative texts.")
    role: Role | None = Field(
        description="`writes`: a larger activation makes the promoted tokens appear. `reads`: it does not. Null if the "
        "feature is not calibrated."
    )
    output_score: float | None = Field(
        description="Whether a larger activation makes the promoted tokens appear, from 0 to 1; null if the feature is "
        "not calibrated."
    )
    dose: float | None = Field(
        description="Raw change of the activation that is one dose; null if the feature is not calibrated."
    )


class ContrastObject(ResponseModel):
    """The features that separate two sets of texts."""

    object: Literal["contrast"] = Field(default="contrast", description="Always `contrast`.")
    model: str = Field(description="The model's id.")
    dictionary: str = Field(description="The dictionary's id.")
    held_out_auc: float | None = Field(
        description="AUC on held-out texts of the best feature on the other texts; null if no feature differs."
    )
    data: list[ContrastFeature] = Field(description="The features, best first.")
    steering: list[dict[str, Any]] = Field(
        description="Edits that lead towards the positive set, for the field `steering`; only of features with "
        "p_value <= 0.05."
    )
    warnings: list[str] = Field(description="Warnings about this result, in sentences.")
